"""Points as processes: started, resumed, stopped and recorded, with short-lived workers."""

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from src.sweeps.plan import Plan
from src.sweeps.points import Missing, Point, missing
from src.sweeps.reasons import reason
from src.sweeps.slots import run_all
from src.sweeps.status import Record
from src.system.files import quoted
from src.system.locks import is_locked
from tests.helpers import ROOT
from tests.points import point as started_point


@pytest.fixture(params=["cold", "warm"])
def point(request, monkeypatch):
    """Return a function that makes points, for both ways to start them; workers need no coverage."""
    monkeypatch.setenv("COVERAGE_PROCESS_CONFIG", "")
    return functools.partial(started_point, start=request.param)


def finish(point: Point, **env: str) -> Record:
    if point.begin(env):
        while not point.ended():
            time.sleep(0.01)
    return point.record


def test_a_finished_point_is_recorded_with_its_value_and_not_run_again(tmp_path, point):
    done = point(tmp_path, "value=2.5")
    assert finish(done, OMP_NUM_THREADS="1").status == "finished"
    assert done.value == 2.5
    seen = json.loads((done.folder / "seen.json").read_text())
    assert seen["env"]["OMP_NUM_THREADS"] == "1"
    assert seen["argv"] == ["value=2.5", f"hydra.run.dir={quoted(done.folder)}", "hydra.mode=RUN"]

    again = point(tmp_path, "value=2.5")
    assert again.finished_before()
    assert again.value == 2.5
    assert not point(tmp_path, "value=2.5", "other=1").finished_before()


def test_a_point_writes_nothing_through_a_link_out(tmp_path, point):
    one = point(tmp_path / "sweep", "value=1")
    one.folder.mkdir(parents=True)
    (one.folder / "output.log").symlink_to(tmp_path / "elsewhere")
    assert "output.log cannot be followed" in finish(one).error
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("checkpoint", [[], ["checkpoint=1"]])
def test_a_folder_with_other_settings_is_neither_taken_nor_changed(tmp_path, point, checkpoint):
    first = point(tmp_path, "value=1", *checkpoint)
    finish(first)
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    other = point(tmp_path, "value=1", *checkpoint, "other=1")
    assert not other.finished_before()
    assert "its folder holds a run with another other: give this sweep another hydra.sweep.dir" in finish(other).error
    assert before == {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    assert point(tmp_path, "value=1", *checkpoint).finished_before()


def test_a_point_that_another_process_has_just_finished_is_not_run_again(tmp_path, point):
    late = point(tmp_path, "value=1")
    assert not late.finished_before()
    finish(point(tmp_path, "value=1"))
    assert not late.begin({})
    assert (late.record.status, late.record.attempts, late.value) == ("finished", 1, 1.0)


def test_a_file_in_the_place_of_a_folder_fails_that_point_alone(tmp_path, point):
    (tmp_path / "value-1").touch()
    run_all(points := [point(tmp_path, f"value={i}") for i in (0, 1)], [{}])
    assert [p.record.status for p in points] == ["finished", "failed"]


def test_a_failed_point_has_the_reason_that_it_printed(tmp_path, point):
    failed = point(tmp_path, "value=1", "fail=the disk is full")
    assert finish(failed).error == "the disk is full"
    assert (failed.record.status, failed.value, failed.record.diverged) == ("failed", None, False)
    assert Record.load(failed.folder) == failed.record
    assert not point(tmp_path, "value=1", "fail=the disk is full").finished_before()


def test_a_crashed_point_has_the_first_line_of_its_exception(tmp_path, point):
    crashed = point(tmp_path, "value=1", "raise=CUDA error: an illegal memory access was encountered")
    assert finish(crashed).error == "RuntimeError: CUDA error: an illegal memory access was encountered"


CRASH = """\
Error executing job with overrides: ['model=lstm']
Traceback (most recent call last):
  File "a.py", line 1, in <module>
    raise ValueError("first")
ValueError: first

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 3, in <module>
    raise torch.AcceleratorError("CUDA error: unspecified launch failure")
torch.AcceleratorError: CUDA error: unspecified launch failure
Search for `cudaErrorLaunchFailure' in the documentation for more information.

Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.
"""
LATER = """\
Exception ignored in: <function Store.__del__ at 0x7f0>
Traceback (most recent call last):
  File "b.py", line 1, in __del__
AttributeError: 'NoneType' object has no attribute 'close'
"""


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (CRASH, "torch.AcceleratorError: CUDA error: unspecified launch failure"),
        (CRASH + LATER, "torch.AcceleratorError: CUDA error: unspecified launch failure"),
        (
            "".join(f"[rank1]: {line}\n" for line in CRASH.splitlines()),
            "torch.AcceleratorError: CUDA error: unspecified launch failure",
        ),
        ("error: the disk is full\n" + LATER, "the disk is full"),
        ("OpenBLAS error: giving up.\n\n", "OpenBLAS error: giving up."),
        ("", "exit status 1"),
    ],
)
def test_the_reason_is_what_ended_the_process(output, why):
    assert reason(1, output) == why


def test_a_point_that_diverged_has_the_value_nan(tmp_path, point):
    gone = point(tmp_path, "value=1", "fail=the loss is not finite", "exit=3")
    assert finish(gone).diverged
    assert math.isnan(gone.value)


def test_an_interrupted_point_is_resumed_if_it_has_a_checkpoint(tmp_path, point):
    for options, resumed in ((["checkpoint=1"], True), ([], False)):
        cut = point(tmp_path / str(resumed), "value=1", *options, "trainer.max_steps=60")
        cut.begin({})
        while not (cut.folder / "seen.json").exists():
            time.sleep(0.02)
        time.sleep(0.2)
        (cut.folder / "train.log").touch()
        os.kill(cut.record.pid, signal.SIGKILL)
        while not cut.ended():
            time.sleep(0.02)
        assert cut.record.error.startswith(
            "killed by SIGKILL (by the system, if memory was full: lower data.batch_size"
        )
        again = point(tmp_path / str(resumed), "value=1", *options, "trainer.max_steps=0")
        assert finish(again).status == "finished"
        assert again.record.attempts == 2
        assert ("ckpt_path=last" in json.loads((again.folder / "seen.json").read_text())["argv"]) is resumed
        assert (again.folder / "train.log").exists() is resumed


def test_a_point_that_was_to_go_on_longer_is_not_finished_by_its_old_metrics(tmp_path, point):
    finish(point(tmp_path, "value=1", "checkpoint=1", "trainer.max_epochs=2"))
    longer = point(tmp_path, "value=1", "checkpoint=1", "trainer.max_epochs=13")
    assert finish(longer).error == "unlucky"
    assert longer.metrics == {}
    assert (longer.folder / "metrics.before.json").exists()  # and nothing is lost
    assert not point(tmp_path, "value=1", "checkpoint=1", "trainer.max_epochs=13").finished_before()


def test_points_of_the_command_are_counted_and_no_others(tmp_path, point):
    asked = [["value=1"], ["value=2", "fail=no"], ["value=3"]]
    for overrides in asked[:2]:
        finish(point(tmp_path, *overrides))
    finish(point(tmp_path, "value=9", "fail=of another command"))
    asked.reverse()
    assert missing(tmp_path, Plan({"value": ""}, {}, "", asked)) == Missing(failed=2, diverged=0)
    assert Record.load(tmp_path / "value-1").number == 2  # its place in the grid, by which reports sort
    finish(point(tmp_path, "value=8", "fail=nan", "exit=3"))
    asked.append(["value=8", "fail=nan", "exit=3"])
    assert missing(tmp_path, Plan({"value": ""}, {}, "", asked)) == Missing(failed=2, diverged=1)
    assert missing(tmp_path, Plan({"value": ""}, {})) == Missing(failed=2, diverged=0)  # a search learns from it


def test_only_one_process_works_on_a_point(tmp_path, point):
    first, second = point(tmp_path, "value=1", "seconds=60"), point(tmp_path, "value=1", "seconds=60")
    first.begin({})
    assert is_locked(first.folder)
    assert not second.begin({})
    assert "another process" in second.record.error
    assert Record.load(first.folder).status == "running"
    first.ask_to_stop()
    first.stop(time.monotonic() + 5)
    assert first.record.status == "interrupted"
    assert not is_locked(first.folder)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be told to refuse locks")
def test_where_the_disk_has_no_locks_a_sweep_says_so_once_and_goes_on(tmp_path):
    code = f"""
from pathlib import Path
from tests.lockless import refuse_locks
from tests.points import point
from src.sweeps.slots import run_all
from hydra_plugins.optuna_sweeper import _exclusive
refuse_locks()
folder = Path({str(tmp_path)!r})
with _exclusive(folder):
    run_all([point(folder, f"value={{i}}") for i in range(2)], [{{}}, {{}}])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.count("has no locks (No locks available)") == 1
    assert "2 of 2 done" in done.stdout


def test_no_process_of_a_point_outlives_it(tmp_path, point):
    dead = point(tmp_path, "value=1", "children=1", "fail=gone")
    finish(dead)
    time.sleep(0.1)
    assert not is_locked(dead.folder)  # the child held the lock
