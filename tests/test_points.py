"""Names of sweeps and points; points as processes: started, resumed, stopped, recorded. With short-lived workers."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo

from src.errors import UserError
from src.sweeps.plan import Plan, plan_of, point_name, quoted, sweep_folder
from src.sweeps.points import Point, program_of, unfinished
from src.sweeps.records import Record, is_locked
from src.sweeps.slots import run_all, slots_of
from tests.conftest import ROOT

WORKER = [sys.executable, str(ROOT / "tests" / "worker.py")]
PLAN = Plan({"value": "1,2"}, {})


def multirun_config(*overrides: str):
    """The config that Hydra hands to a sweep's callback."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain = [o for o in overrides if "," not in o]
        config = compose("train", overrides=plain, return_hydra_config=True)
    config.hydra.overrides.task = list(overrides)
    return config


def point(folder: Path, *overrides: str, plan: Plan = PLAN) -> Point:
    return Point(folder, plan, overrides, 0, WORKER)


def finish(point: Point, **env: str) -> Record:
    if point.begin(env):
        while not point.ended():
            time.sleep(0.01)
    return point.record


# ---- names ---------------------------------------------------------------------------------------------------------


def test_a_sweep_is_split_into_what_is_swept_and_what_is_fixed():
    config = multirun_config("model.latent_dim=2,8", "model=lstm", "model.kl_weight=1", "sweep=rate_distortion")
    plan = plan_of(config, "typed")
    assert plan.swept == {"model.latent_dim": "2,8"}  # the preset sweeps kl_weight, the command line fixes it
    assert plan.fixed == {"model": "lstm", "model.kl_weight": "1"}


def test_the_folder_of_a_sweep_follows_from_its_command():
    def folder(*overrides):
        config = multirun_config(*overrides)
        return sweep_folder(plan_of(config, ""), config)

    one = folder("model=lstm", "data=mnist", "model.latent_dim=2,8", "seed=0,1")
    assert one.parent == Path("outputs/multirun/mnist/lstm")
    assert one.name.startswith("latent_dim-seed-")
    assert one == folder("seed=0,1", "model.latent_dim=2,8", "model=lstm", "data=mnist")
    others = [
        folder("model=lstm", "data=mnist", "model.latent_dim=2,8", "seed=0,2"),
        folder("model=lstm", "data=mnist", "model.latent_dim=2,8", "seed=0,1", "model.depth=2"),
        folder("model=lstm,conv_tiny", "data=mnist", "model.latent_dim=2,8", "seed=0,1"),
    ]
    assert len({one, *others}) == 4


@pytest.mark.parametrize(
    ("overrides", "swept", "name"),
    [
        (["a.latent_dim=2", "b=1"], ["a.latent_dim"], "latent_dim-2"),
        (["a.lr=2", "b.lr=1e-3"], ["b.lr", "a.lr"], "a.lr-2__b.lr-1e-3"),
        (["model=lstm", "seed=0", "z=1"], ["seed", "model", "z"], "model-lstm__z-1__seed-0"),
        (["seed=0"], [], "point"),
    ],
)
def test_a_point_is_called_after_its_swept_values(overrides, swept, name):
    assert point_name(overrides, dict.fromkeys(swept)) == name


def test_names_of_points_are_plain_short_and_different():
    values = ["[1,2]", "[1,3]", "'a b'", "x/../../y", "1" * 400, "1" * 399 + "2"]
    names = [point_name([f"widths={value}"], {"widths": None}) for value in values]
    assert len(set(names)) == len(values)
    for name in names:
        assert len(name) < 200
        assert all(c.isalnum() or c in "._+-" for c in name)


def test_hydra_reads_a_quoted_path_back():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for path in ("plain/folder", "it's, [odd]=x", "back\\slash", "a\\'b\\"):
        parsed = OverridesParser.create().parse_override(f"hydra.run.dir={quoted(Path(path))}")
        assert parsed.value() == path


def test_a_damaged_plan_is_one_clear_line(tmp_path):
    assert Plan.load(tmp_path) is None
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep.json is damaged"):
        Plan.load(tmp_path)


def test_points_get_the_options_of_hydra_but_not_those_of_the_sweep():
    config = multirun_config("hydra.verbose=true", "hydra.launcher.slots=2", "hydra.sweep.dir=x")
    program = program_of(config.hydra)
    assert program[1:3] == ["-m", "src.train"]
    assert program[-1] == "hydra.verbose=true"


# ---- the machine ---------------------------------------------------------------------------------------------------


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


# ---- one point -----------------------------------------------------------------------------------------------------


def test_a_finished_point_is_recorded_with_its_value_and_not_run_again(tmp_path):
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


@pytest.mark.parametrize("checkpoint", [[], ["checkpoint=1"]])
def test_a_folder_with_other_settings_is_neither_taken_nor_changed(tmp_path, checkpoint):
    first = point(tmp_path, "value=1", *checkpoint)
    finish(first)
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    other = point(tmp_path, "value=1", *checkpoint, "other=1")
    assert not other.finished_before()
    assert "its folder holds a run with another other: give this sweep another hydra.sweep.dir" in finish(other).error
    assert before == {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    assert point(tmp_path, "value=1", *checkpoint).finished_before()


def test_a_point_that_another_process_has_just_finished_is_not_run_again(tmp_path):
    late = point(tmp_path, "value=1")
    assert not late.finished_before()
    finish(point(tmp_path, "value=1"))
    assert not late.begin({})
    assert (late.record.status, late.record.attempts, late.value) == ("finished", 1, 1.0)


def test_a_file_in_the_place_of_a_folder_fails_that_point_alone(tmp_path):
    (tmp_path / "value-1").touch()
    run_all(points := [point(tmp_path, f"value={i}") for i in (0, 1)], [{}])
    assert [p.record.status for p in points] == ["finished", "failed"]


def test_a_failed_point_has_the_reason_that_it_printed(tmp_path):
    failed = point(tmp_path, "value=1", "fail=the disk is full")
    assert finish(failed).error == "the disk is full"
    assert (failed.record.status, failed.value, failed.record.diverged) == ("failed", None, False)
    assert Record.load(failed.folder) == failed.record
    assert not point(tmp_path, "value=1", "fail=the disk is full").finished_before()


def test_a_point_that_diverged_has_the_value_nan(tmp_path):
    gone = point(tmp_path, "value=1", "fail=the loss is not finite", "exit=3")
    assert finish(gone).diverged
    assert math.isnan(gone.value)


def test_an_interrupted_point_is_resumed_if_it_has_a_checkpoint(tmp_path):
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
        assert cut.record.error.startswith("killed by SIGKILL")
        again = point(tmp_path / str(resumed), "value=1", *options, "trainer.max_steps=0")
        assert finish(again).status == "finished"
        assert again.record.attempts == 2
        assert ("ckpt_path=last" in json.loads((again.folder / "seen.json").read_text())["argv"]) is resumed
        assert (again.folder / "train.log").exists() is resumed


def test_a_point_that_was_to_go_on_longer_is_not_finished_by_its_old_metrics(tmp_path):
    finish(point(tmp_path, "value=1", "checkpoint=1", "trainer.max_epochs=2"))
    longer = point(tmp_path, "value=1", "checkpoint=1", "trainer.max_epochs=13")
    assert finish(longer).error == "unlucky"
    assert longer.metrics == {}
    assert (longer.folder / "metrics.before.json").exists()  # and nothing is lost
    assert not point(tmp_path, "value=1", "checkpoint=1", "trainer.max_epochs=13").finished_before()


def test_points_of_the_command_are_counted_and_no_others(tmp_path):
    asked = [["value=1"], ["value=2", "fail=no"], ["value=3"]]
    for overrides in asked[:2]:
        finish(point(tmp_path, *overrides))
    finish(point(tmp_path, "value=9", "fail=of another command"))
    assert unfinished(tmp_path, Plan({"value": ""}, {}, "", asked)) == 2
    finish(point(tmp_path, "value=8", "fail=nan", "exit=3"))
    assert unfinished(tmp_path, Plan({"value": ""}, {})) == 2  # a search: what diverged was an answer


def test_only_one_process_works_on_a_point(tmp_path):
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


def test_no_process_of_a_point_outlives_it(tmp_path):
    dead = point(tmp_path, "value=1", "children=1", "fail=gone")
    finish(dead)
    time.sleep(0.1)
    assert not is_locked(dead.folder)  # the child held the lock


# ---- many points ---------------------------------------------------------------------------------------------------


def test_failed_points_do_not_stop_the_others_and_slots_are_kept_full(tmp_path, capfd):
    words = [["fail=no"] if i == 1 else [] for i in range(5)]
    points = [point(tmp_path, f"value={i}", "seconds=0.2", *more) for i, more in enumerate(words)]
    run_all(points, [{"SLOT": "a"}, {"SLOT": "b"}])
    assert [p.record.status for p in points] == ["finished", "failed", "finished", "finished", "finished"]
    slots = [json.loads((p.folder / "seen.json").read_text())["env"]["SLOT"] for p in points]
    assert set(slots) == {"a", "b"}
    began = sorted(p.record.began for p in points)
    assert began[1] - began[0] < 0.2 < began[4] - began[0]
    said = capfd.readouterr().out
    assert "value-1 failed: no" in said
    assert "4 of 5 done, 0 running, 1 failed" in said
    run_all(points := [point(tmp_path, f"value={i}", "seconds=0.2", *more) for i, more in enumerate(words)], [{}])
    assert [p.record.attempts for p in points] == [1, 2, 1, 1, 1]
    assert "4 of 5 points were finished before" in capfd.readouterr().out


def sweep_process(folder: Path, before: str = "", **options) -> subprocess.Popen:
    """A sweep of four workers in two slots: the first is soon done, the others take a minute."""
    code = f"""
from pathlib import Path
from src.sweeps.plan import Plan
from src.sweeps.points import Point
from src.sweeps.slots import run_all
{before}
plan, folder = Plan({{"value": ""}}, {{}}), Path({str(folder)!r})
words = [[f"value={{i}}", f"seconds={{60 * (i > 0)}}"] for i in range(4)]
points = [Point(folder, plan, typed, i, {WORKER!r}) for i, typed in enumerate(words)]
try:
    run_all(points, [{{}}, {{}}])
except KeyboardInterrupt:
    print("stopped", *(p.record.status for p in points))
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


def test_an_interrupted_sweep_stops_its_points(tmp_path):
    with sweep_process(tmp_path) as process:
        wait_until_started(tmp_path)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[0]
    assert said.splitlines()[-1] == "stopped finished interrupted interrupted waiting"
    assert not any(is_locked(path) for path in tmp_path.iterdir())


def test_no_point_outlives_a_sweep_that_is_killed_without_a_word(tmp_path):
    with sweep_process(tmp_path) as process:
        wait_until_started(tmp_path)
        process.kill()
    wait_until_free(tmp_path)


def test_a_closed_pipe_takes_the_words_and_not_the_sweep(tmp_path):
    read, write = os.pipe()
    heard = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # the tests may run under nohup
    with sweep_process(tmp_path, heard, stdout=write, stderr=subprocess.DEVNULL) as process:
        os.close(write)
        os.close(read)
        wait_until_started(tmp_path)  # it goes on when it cannot say so
        process.send_signal(signal.SIGHUP)
        process.wait(30)
    assert not any(is_locked(path) for path in tmp_path.iterdir())


def test_nohup_lets_a_sweep_outlive_its_terminal(tmp_path):
    with sweep_process(tmp_path, "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)") as process:
        wait_until_started(tmp_path)
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert is_locked(tmp_path / "value-2")
        process.terminate()
        process.wait(30)


def test_a_preset_that_sets_more_than_the_sweep_is_refused(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text("hydra: {}\ntrainer: {max_epochs: 3}\n")
    config = multirun_config("model.latent_dim=2,3")
    config.hydra.runtime.choices.sweep = "mine"
    config.hydra.runtime.config_sources.append(ConfigSourceInfo(str(tmp_path), "file", "test"))
    with pytest.raises(UserError, match="sets trainer: a preset only says what is swept"):
        plan_of(config, "")


def test_the_grid_of_a_command_is_known_beforehand():
    plan = plan_of(multirun_config("sweep=rate_distortion", "model.kl_weight=1,2", "seed=0,1", "model=lstm"), "")
    assert len(plan.points) == 3 * 2 * 2
    assert plan.points[1] == ["model.latent_dim=2", "model.kl_weight=1", "seed=1", "model=lstm"]
