"""Sweeps by the command line, with real trainings."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import PLAIN, QUICK, ROOT, cli, command

pytestmark = pytest.mark.slow

ONE = {"OMP_NUM_THREADS": "1"}
NO_PICTURES = ("~callbacks.figures", "~callbacks.dashboard")
SHORT = (*QUICK, *NO_PICTURES, "trainer.max_epochs=2", "hydra.launcher.slots=2")


def metrics(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def wait_for(condition, seconds: float = 600.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def hparams_tab(folder: Path) -> dict:
    """What TensorBoard tells its HParams tab of a folder, with the loader that it takes by default."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    ask = urllib.request.Request(
        f"http://127.0.0.1:{port}/data/plugin/hparams/experiment",
        b'{"experimentName": "", "includeMetrics": true}',
        {"Content-Type": "application/json"},
    )
    found = {}

    def answered():
        with contextlib.suppress(OSError):  # it does not listen yet
            found.update(json.loads(urllib.request.urlopen(ask, timeout=10).read()))
        return "hparamInfos" in found

    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as board:
        try:
            wait_for(answered, 60)
        finally:
            board.kill()
    return found


def test_a_grid_survives_a_failed_and_a_killed_point_and_is_completed_by_the_same_command(tmp_path):
    grid = ("-m", *SHORT, "model.latent_dim=2,3", "model.kl_weight=0.5,4", f"hydra.sweep.dir={tmp_path}")
    damaged = tmp_path / "kl_weight-0.5__latent_dim-3" / "checkpoints" / "last.ckpt"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not a checkpoint")
    killed = tmp_path / "kl_weight-4__latent_dim-2"

    with subprocess.Popen(
        command(*grid),
        cwd=ROOT,
        env={**os.environ, **ONE},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        wait_for((killed / "checkpoints" / "last.ckpt").exists)
        os.kill(json.loads((killed / "point.json").read_text())["pid"], signal.SIGKILL)
        said = process.communicate()[0]
    assert process.returncode == 2, said  # as many as failed
    assert "killed by SIGKILL" in said
    assert "2 of 4 done, 0 running, 2 failed" in said
    error = json.loads((damaged.parents[1] / "point.json").read_text())["error"]
    assert error.endswith("is no complete run folder and cannot be resumed")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.json")}
    assert len(before) == 2

    damaged.unlink()
    done = subprocess.run(
        command(*grid), cwd=ROOT, env={**os.environ, **ONE}, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 4 points were finished before" in done.stdout
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.json")}
    assert len(after) == 4
    assert before.items() <= after.items()
    assert "epoch 1/" not in (killed / "output.log").read_text()  # resumed
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir() and p.name != "report") == sorted(
        path.parent.name for path in after
    )

    found = {path.parent.name: metrics(path.parent) for path in after}
    for name, run in found.items():
        kl_weight, latent_dim = (part.partition("-")[2] for part in name.split("__"))
        assert (run["latent_dim"], run["kl_weight"]) == (int(latent_dim), float(kl_weight))
        assert run["config"]["model"]["latent_dim"] == int(latent_dim)
        assert run["peak_memory_mib"]["process"] > 0
    assert len({run["data"]["fingerprint"] for run in found.values()}) == 1
    assert len({run["test"]["elbo"] for run in found.values()}) == 4
    table = pd.read_csv(tmp_path / "results.csv").set_index("point")
    assert table.test_elbo.to_dict() == {name: pytest.approx(run["test"]["elbo"]) for name, run in found.items()}
    assert (table.status == "finished").all()
    assert f"report: {tmp_path}/report/index.html" in done.stdout
    # The HParams tab of the whole folder: what was swept, and the metric of every point.
    shown = hparams_tab(tmp_path)
    assert sorted(column["name"] for column in shown["hparamInfos"]) == ["model.kl_weight", "model.latent_dim"]
    assert {metric["name"]["tag"] for metric in shown["metricInfos"]} == {"val/elbo", "test/elbo"}
    for name, run in found.items():
        scalars = EventAccumulator(str(tmp_path / name / "tensorboard")).Reload()
        assert scalars.Scalars("test/elbo")[-1].value == pytest.approx(run["test"]["elbo"])


def test_two_processes_in_a_sweep_train_as_one(tmp_path):
    """A point on two CPU processes ends with the weights of one process on the same global batches.

    In the default sweep folder, which is below the working directory.
    """
    overrides = (
        *QUICK,
        *PLAIN,
        "model._target_=tests.mean_vae.MeanVAE",
        # No batch norm: its statistics are of a process's own images.
        *(f"model.{key}=none" for key in ("encoder.norm", "encoder.hidden_norm", "decoder.norm", "decoder.dense_norm")),
        "trainer.max_epochs=2",
    )
    assert cli(*overrides, f"hydra.run.dir={tmp_path}/one", **ONE).returncode == 0
    done = subprocess.run(
        command("-m", *overrides, "trainer=ddp", "trainer.accelerator=cpu", "model.latent_dim=choice(2)"),
        cwd=tmp_path,
        env={**os.environ, **ONE, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "outputs" / "multirun" / "digits" / "conv_tiny").iterdir()
    assert [p.name for p in folder.iterdir() if p.is_dir() and p.name != "report"] == ["latent_dim-2"]
    runs = (tmp_path / "one", folder / "latent_dim-2")
    assert metrics(runs[1])["devices"] == "2 x cpu"
    assert (runs[1] / "output.log").read_text().count("Result on the test split") == 1
    one, two = (torch.load(r / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for r in runs)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-5, msg=name)
    elbos = [metrics(run)["test"]["elbo"] for run in runs]
    assert elbos[1] == pytest.approx(elbos[0], rel=1e-4)


def test_a_search_goes_on_with_its_study(tmp_path):
    optuna = pytest.importorskip("optuna")
    search = (
        "-m", *QUICK, *PLAIN, "trainer.max_epochs=1", "sweep=optuna", "model.latent_dim=2,3", "model.depth=1",
        "optimizer.lr=1e-3", "hydra.launcher.slots=2", f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    for trials in (1, 2):
        done = cli(*search, f"hydra.sweeper.trials={trials}", **ONE)
        assert done.returncode == 0, done.stdout
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path}/optuna.db")
    values = {trial.number: trial.value for trial in study.trials}
    found = [metrics(path.parent)["best"]["val/elbo"] for path in tmp_path.glob("*/metrics.json")]
    assert len(values) == 2
    assert sorted(values.values()) == sorted(found)
    assert study.direction.name == "MAXIMIZE"
    assert all(0.25 <= trial.params["model.kl_weight"] <= 4 for trial in study.trials)
    assert "search: 2 of 2 points" in done.stdout
