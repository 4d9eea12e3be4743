"""Tests of the fault detection of ``make torture``, which is not run here."""

import json
import random
import shutil
import signal

import pytest
import torch

from tests.helpers import ROOT
from tests.torture import kills, looks
from tests.torture.commands import Done, Running
from tests.torture.numbers import SAFE, drawn, followed
from tests.torture.table import Case, Table


def test_truncated_files_are_found(finished, tmp_path):
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
        (None, "", "it did not end within 9 s"),
    ],
)
def test_answers_other_than_one_error_line_are_found(status, output, fault):
    found = looks.refused(Done(status, output, 9.0))
    assert found == [] if fault is None else any(fault in one for one in found)


def test_metrics_that_are_not_finite_and_changed_files_are_found(finished, tmp_path):
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


def test_weights_that_differ_from_the_undisturbed_run_are_found(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    job = kills.Job("training", kills.TRAINING)
    assert kills._different(job, run, finished[0]) == []
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] += 1e-6
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    assert kills._different(job, run, finished[0]) == ["last.ckpt: other weights than in the undisturbed run"]


def test_a_command_is_killed_at_the_given_file_operation(tmp_path):
    """``tests.say end forget`` opens one file: the signal comes before that, or after its first write."""
    written = tmp_path / "forgotten"
    for moment, exists in (("1", False), ("1w", True)):
        trap = [moment, "SIGKILL", str(tmp_path), "tests.say", "end", "forget"]
        done = Running(trap, "tests.torture.trapped", FORGOTTEN=str(written)).done()
        assert done.status == -signal.SIGKILL
        assert written.exists() is exists
    assert written.read_text() == ""  # not flushed


def test_the_advice_of_the_guard_is_followed_until_the_run_succeeds(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    safe = {**drawn(random.Random(0)), **SAFE, "model": "conv_tiny", "likelihood": "bernoulli", "size": 8}
    safe = {k: v for k, v in safe.items() if k != "model.likelihood.scale"}
    extreme = safe | {"model.kl_weight": 1e30, "trainer.detect_anomaly": False}
    messages, faults = followed(extreme, str(tmp_path))
    assert len(messages) == 1
    assert "model.kl_weight=1e+30" in messages[0]
    assert faults == []
    monkeypatch.setattr("tests.torture.numbers.attempt", lambda *_: "stopped. optimizer.lr=1e-05 is too high: lower it")
    assert followed(extreme, str(tmp_path))[1] == ["optimizer.lr is named though it has a safe value"]
    monkeypatch.setattr("tests.torture.numbers.attempt", lambda *_: "stopped, who knows why")
    assert followed(extreme, str(tmp_path))[1] == ["the message names no setting"]


def test_the_table_counts_and_shows_the_command(capsys):
    table = Table()
    table.add(Case("kills: training", "fine", "python -m src.train"))
    table.add(Case("kills: training", "SIGKILL", "python -m src.train x=1", ["last.ckpt is not whole"], "its output"))
    table.note("kills: training", "2 kills")
    assert "FAULT  kills: training: SIGKILL: last.ckpt is not whole" in capsys.readouterr().out
    text = table.text()
    assert "kills: training      2     1       1  (2 kills)" in text
    for line in ("  $ python -m src.train x=1", "  fault: last.ckpt is not whole", "  | its output"):
        assert line in text
