"""Slots of the machine, and sweeps that run in them: kept full, interrupted, killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.sweeps import gpus
from src.sweeps.gpus import visible_gpus
from src.sweeps.slots import Board, epochs_of, run_all, slots_of
from src.system.errors import UserError
from src.system.locks import is_locked
from tests.helpers import ROOT
from tests.points import WORKER, point


def threads(slots):
    return [slot["OMP_NUM_THREADS"] for slot in slots]


def test_processors_are_divided_among_slots():
    assert threads(slots_of("cpu", 1, [], 8)) == ["1"] * 8
    assert threads(slots_of("cpu", 1, [], 8, slots=2)) == ["4", "4"]
    assert threads(slots_of("cpu", 2, [], 8)) == ["1"] * 4  # two processes a point
    assert threads(slots_of("auto", 1, [], 2, slots=4)) == ["1"] * 4
    assert threads(slots_of("cpu", 1, ["0"], 8, slots=1, threads=3)) == ["3"]
    assert all("CUDA_VISIBLE_DEVICES" not in slot for slot in slots_of("cpu", 1, ["0", "1"], 8))


def test_each_slot_sees_its_gpus_alone():
    def seen(*args, **more):
        return [slot["CUDA_VISIBLE_DEVICES"] for slot in slots_of(*args, **more)]

    assert seen("gpu", 1, ["0", "1", "GPU-abc"], 8) == ["0", "1", "GPU-abc"]
    assert seen("auto", 1, ["3"], 8, per_gpu=3) == ["3", "3", "3"]
    assert seen("gpu", 2, ["0", "1", "2", "3", "4"], 8) == ["0,1", "2,3"]
    assert seen("gpu", "2", ["0", "1"], 8) == ["0,1"]
    assert seen("gpu", 1, ["0", "1"], 8, slots=3) == ["0", "1", "0"]
    assert threads(slots_of("gpu", 1, ["0", "1"], 16)) == ["8", "8"]
    with pytest.raises(UserError, match="trainer.devices=2 GPUs a point, and 1 are here"):
        slots_of("gpu", 2, ["0"], 8)
    with pytest.raises(UserError, match="give a number; CUDA_VISIBLE_DEVICES says which"):
        slots_of("gpu", [2, 3], ["0", "1", "2", "3"], 8)
    with pytest.raises(UserError, match=r"hydra.launcher.slots=0"):
        slots_of("cpu", 1, [], 8, slots=0)

    assert seen("gpu", 1, ["MIG-a", "MIG-b", "GPU-c"], 8) == ["MIG-a", "MIG-b", "GPU-c"]
    with pytest.raises(UserError, match="trainer.devices=2 GPUs a point, and 1 are here besides MIG instances"):
        slots_of("gpu", 2, ["MIG-a", "MIG-b", "GPU-c"], 8)


# As drivers print it: 470 and later, and those before, on a DGX whose first card is divided.
CARDS = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
"""
DIVIDED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 3g.20gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
"""
DIVIDED_THEN = """\
GPU 0: A100-SXM4-40GB (UUID: GPU-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0)
  MIG 1g.5gb Device 0: (UUID: MIG-GPU-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0/7/0)
  MIG 1c.3g.20gb Device 1: (UUID: MIG-GPU-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0/1/0)
"""
BROKEN = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Return a function that puts an ``nvidia-smi`` first on the PATH which prints a given list."""

    def write(says: str, after: str = "") -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n[ \"$*\" = -L ] || exit 2\ncat <<'END'\n{says}\nEND\n{after}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return write


@pytest.mark.parametrize(
    ("says", "names"),
    [
        (CARDS, ["GPU-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0", "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"]),
        (
            DIVIDED,
            [
                "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
                "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb",
                "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77",
            ],
        ),
        (DIVIDED_THEN, [f"MIG-GPU-e86cb44c-6756-fd30-cd4a-1e6da3caf9b0/{part}/0" for part in (7, 1)]),
        ("No devices found.", []),
    ],
)
def test_cards_are_counted_and_in_place_of_divided_ones_their_instances(smi, monkeypatch, caplog, says, names):
    smi(says)
    assert visible_gpus() == names
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, MIG-x")
    assert visible_gpus() == ["1", "MIG-x"]
    assert caplog.messages == []


def test_a_driver_that_does_not_answer_is_waited_for_a_while_and_no_longer(smi, monkeypatch, caplog):
    monkeypatch.setattr(gpus, "PATIENCE", 0.5)
    smi(CARDS, "exec sleep 60")
    assert visible_gpus() == []
    smi(BROKEN, "exit 9")
    assert visible_gpus() == []
    slow, broken = caplog.messages
    assert "nvidia-smi fails (no answer within 0.5 seconds): repair the driver, or set trainer=cpu" in slow
    assert f"nvidia-smi fails ({BROKEN})" in broken


# ---- many points ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_failed_points_do_not_stop_the_others_and_slots_are_kept_full(tmp_path, capfd, start, monkeypatch):
    monkeypatch.setenv("COVERAGE_PROCESS_CONFIG", "")  # workers need no coverage
    words = [["fail=no"] if i == 1 else [] for i in range(5)]
    points = [point(tmp_path, f"value={i}", "seconds=0.2", *more, start=start) for i, more in enumerate(words)]
    run_all(points, [{"SLOT": "a"}, {"SLOT": "b"}])
    assert [p.record.status for p in points] == ["finished", "failed", "finished", "finished", "finished"]
    slots = [json.loads((p.folder / "seen.json").read_text())["env"]["SLOT"] for p in points]
    assert set(slots) == {"a", "b"}
    first, second, *_, last = sorted((p.record.began, p.record.began + p.record.seconds) for p in points)
    assert second[0] < first[1] < last[0]  # two at a time, and no more
    said = capfd.readouterr().out
    assert "value-1 failed: no" in said
    assert "4 of 5 done, 0 running, 1 failed" in said
    points = [point(tmp_path, f"value={i}", "seconds=0.2", *more, start=start) for i, more in enumerate(words)]
    run_all(points, [{}])
    assert [p.record.attempts for p in points] == [1, 2, 1, 1, 1]
    assert "4 of 5 points were finished before" in capfd.readouterr().out


def sweep_process(folder: Path, before: str = "", start: str = "cold", **options) -> subprocess.Popen:
    """Start a sweep of four workers in two slots: the first ends soon, the others take a minute."""
    code = f"""
from pathlib import Path
from src.system.signals import status_of
from src.sweeps.plan import Plan
from src.sweeps.points import Point
from src.sweeps.slots import run_all
from tests.points import STARTERS
{before}
plan, folder = Plan({{"value": ""}}, {{}}), Path({str(folder)!r})
words = [[f"value={{i}}", f"seconds={{60 * (i > 0)}}"] for i in range(4)]
points = [Point(folder, plan, typed, i, {WORKER!r}, STARTERS[{start!r}]) for i, typed in enumerate(words)]
try:
    run_all(points, [{{}}, {{}}])
except KeyboardInterrupt as stop:
    print("stopped", status_of(stop), *(p.record.status for p in points))
"""
    options = {"stdout": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **options)


def wait_until_started(folder: Path) -> None:
    while not (folder / "value-2" / "seen.json").exists():
        time.sleep(0.05)
    time.sleep(0.2)


def wait_until_free(folder: Path) -> None:
    until = time.monotonic() + 15
    while any(is_locked(path) for path in folder.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_an_interrupted_sweep_stops_its_points(tmp_path, start):
    with sweep_process(tmp_path, start=start) as process:
        wait_until_started(tmp_path)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[0]
    assert said.splitlines()[-1] == "stopped 143 finished interrupted interrupted waiting"
    assert not any(is_locked(path) for path in tmp_path.iterdir())


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_no_point_outlives_a_sweep_that_is_killed_without_a_word(tmp_path, start):
    with sweep_process(tmp_path, start=start) as process:
        wait_until_started(tmp_path)
        process.kill()
    wait_until_free(tmp_path)


def test_a_closed_pipe_silences_the_output_and_does_not_stop_the_sweep(tmp_path):
    read, write = os.pipe()
    with_hangup = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # the tests may run under nohup
    with sweep_process(tmp_path, with_hangup, stdout=write, stderr=subprocess.DEVNULL) as process:
        os.close(write)
        os.close(read)
        wait_until_started(tmp_path)  # it goes on although it cannot print
        process.send_signal(signal.SIGHUP)
        process.wait(30)
    assert not any(is_locked(path) for path in tmp_path.iterdir())


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_nohup_lets_a_sweep_outlive_its_terminal(tmp_path, start):
    with sweep_process(tmp_path, "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)", start) as process:
        wait_until_started(tmp_path)
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert is_locked(tmp_path / "value-2")
        process.terminate()
        process.wait(30)


# ---- the status line ------------------------------------------------------------------------------------------------

LINES = """\
conv_tiny with 2 latents on digits: max_epochs 20, cpu
epoch 3/20 (best)  val −pseudo-elbo 36.57  distortion 36.47  rate 0.09  train 38.08  30 s, about 9 min left
epoch 4/20  val −pseudo-elbo 36.57  distortion 36.47  rate 0.09  train 38.08  10.0 s, about 3 min left
a library's warning: epoch 9/20
"""


def test_a_sweeps_line_says_how_far_running_points_are_and_when_the_first_will_end(tmp_path):
    points = [point(tmp_path, f"value={i}") for i in range(4)]
    now = time.time()
    for i, running in enumerate(points[:2]):
        running.folder.mkdir()
        running.record.status, running.record.began = "running", now - 100
        (running.folder / "output.log").write_text(LINES if i == 0 else "digits: 1,294 training images\n")
        os.utime(running.folder / "output.log", (now, now))
    board = Board(points, 2)
    # 16 epochs of 20 seconds are left of the first, so that each takes some 420: (2 * 420 + 320 + 320) / 2.
    assert board.standing() == "0 of 4 done, 2 running (epochs 4/20), 0 failed, about 12 min left"
    points[0].record.status = "failed"
    points[1].record.began = now - 10_000
    # The time stays known when the point that gave it has failed; an overdue point has nothing left: (2 * 420 + 0) / 2.
    assert board.standing() == "0 of 4 done, 1 running, 1 failed, about 7 min left"
    for waiting in points[2:]:
        waiting.record.status, waiting.record.seconds = "finished", 420.0
    assert board.standing() == "2 of 4 done, 1 running, 1 failed, about 0 s left"
    points[1].record.status = "finished"
    assert board.standing() == "3 of 4 done, 0 running, 1 failed"
    for point_, status in zip(points, ("running", "running", "waiting", "waiting"), strict=True):
        point_.record.status = status
    (points[1].folder / "output.log").write_bytes(b"\xff" * 9000)
    (points[0].folder / "output.log").unlink()
    assert Board(points, 2).standing() == "0 of 4 done, 2 running, 0 failed"


def test_epochs_are_read_from_the_end_of_what_a_point_has_printed(tmp_path):
    output = tmp_path / "output.log"
    assert epochs_of(output) is None
    output.write_text("epoch 1/9  train −elbo 5.00  99 s\n" * 1000 + "epoch 7  train −elbo 5.00  0.5 s\n" * 200)
    reached = epochs_of(output)
    assert (str(reached), reached.seconds, reached.seconds_left) == ("7", 0.5, None)
    output.write_text("epoch 8/9  train −elbo 5.00  20 s\nepoch 9/9")  # cut off while it is written
    os.utime(output, (0, 0))
    assert str(epochs_of(output)) == "8/9"
    assert epochs_of(output).seconds_left == 0  # long overdue
