"""The campaign's own eyes: what it would call a fault, shown to it. The campaign itself is ``make torture``."""

import json
import random
import shutil
import signal

import pytest
import torch

from tests.helpers import ROOT
from tests.torture import kills, looks
from tests.torture.commands import Done, Running
from tests.torture.numbers import TAME, drawn, followed
from tests.torture.table import Case, Table


def test_files_that_are_cut_off_are_seen(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    assert looks.not_whole(run) == []
    for name, size in (("checkpoints/last.ckpt", 5_000), ("metrics.json", 100), (".hydra/config.yaml", 0)):
        with open(run / name, "r+b") as file:
            file.truncate(size)
    (run / ".metrics.json-abc").touch()
    assert [fault.split()[0] for fault in looks.not_whole(run)] == [
        ".hydra/config.yaml",
        "checkpoints/last.ckpt",
        "metrics.json",
    ]
    assert looks.litter(run) == ["litter: .metrics.json-abc"]


@pytest.mark.parametrize(
    ("status", "output", "fault"),
    [
        (1, "error: lr=x: give a number\n", None),
        (0, "all is well\n", None),
        (1, "Traceback (most recent call last):\nValueError: x\n", "a traceback: ValueError: x"),
        (1, "error: a\nerror: b\n", "2 error: lines"),
        (1, "error: a\nand more\n", "the error: line is not the last"),
        (1, "\n", "0 error: lines"),
        (-11, "", "it was killed by signal 11"),
        (None, "", "it had not ended after 9 s"),
    ],
)
def test_answers_that_are_no_line_are_seen(status, output, fault):
    found = looks.refused(Done(status, output, 9.0))
    assert found == [] if fault is None else any(fault in one for one in found)


def test_figures_that_are_no_numbers_and_files_that_change_are_seen(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    (run / "loop").symlink_to("loop")
    before = looks.listing(run)
    assert looks.infinite(run) == looks.changed(before, run) == []
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["test"]["elbo"] = float("nan")
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "train.log").write_text("words")
    (run / "checkpoints" / "best.ckpt").unlink()
    assert looks.infinite(run) == ["metrics.json: test.elbo is nan"]
    assert looks.changed(before, run) == ["checkpoints/best.ckpt is gone", "metrics.json was changed"]


def test_weights_that_differ_from_the_undisturbed_run_are_seen(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    job = kills.Job("training", kills.TRAINING)
    assert kills._different(job, run, finished[0]) == []
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] += 1e-6
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    assert kills._different(job, run, finished[0]) == ["last.ckpt: other weights than in the undisturbed run"]


def test_a_command_is_killed_at_the_very_operation(tmp_path):
    """``tests.say end forget`` opens one file below the folder: the trap is before that, or after its first write."""
    written = tmp_path / "forgotten"
    for moment, there in (("1", False), ("1w", True)):
        trap = [moment, "SIGKILL", str(tmp_path), "tests.say", "end", "forget"]
        done = Running(trap, "tests.torture.trapped", FORGOTTEN=str(written)).done()
        assert done.status == -signal.SIGKILL
        assert written.exists() is there
    assert written.read_text() == ""  # not flushed


def test_advice_of_the_guard_is_followed_until_it_ends_well(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    plain = {**drawn(random.Random(0)), **TAME, "model": "conv_tiny", "likelihood": "bernoulli", "size": 8}
    plain = {k: v for k, v in plain.items() if k != "model.likelihood.scale"}
    wild = plain | {"model.kl_weight": 1e30, "trainer.detect_anomaly": False}
    said, faults = followed(wild, str(tmp_path))
    assert len(said) == 1
    assert "model.kl_weight=1e+30" in said[0]
    assert faults == []
    monkeypatch.setattr("tests.torture.numbers.attempt", lambda *_: "stopped. optimizer.lr=1e-05 is too high: lower it")
    assert followed(wild, str(tmp_path))[1] == ["optimizer.lr is named, and it is tame"]
    monkeypatch.setattr("tests.torture.numbers.attempt", lambda *_: "stopped, who knows why")
    assert followed(wild, str(tmp_path))[1] == ["no setting is named"]


def test_the_table_counts_and_shows_the_command(capsys):
    table = Table()
    table.add(Case("kills: training", "fine", "python -m src.train"))
    table.add(Case("kills: training", "SIGKILL", "python -m src.train x=1", ["last.ckpt is not whole"], "what it said"))
    table.note("kills: training", "2 kills")
    assert "FAULT  kills: training: SIGKILL: last.ckpt is not whole" in capsys.readouterr().out
    text = table.text()
    assert "kills: training      2     1       1  (2 kills)" in text
    for line in ("  $ python -m src.train x=1", "  fault: last.ckpt is not whole", "  | what it said"):
        assert line in text
