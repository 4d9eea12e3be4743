"""Read folders of an earlier version: a sweep of November 2026, before modules moved."""

import json
import shutil
from pathlib import Path

import pytest

from src.evaluation.likelihood import elbo
from src.reporting.results import read_results
from src.runs.load import load_run, predictor_of
from tests.helpers import PLAIN, ROOT, cli


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Return a copy of that sweep; one point has its checkpoint."""
    return Path(shutil.copytree(ROOT / "tests" / "fixtures" / "sweep", tmp_path / "sweep"))


def test_its_runs_evaluate_to_the_recorded_values(sweep):
    run = load_run(sweep / "latent_dim-2__seed-0")
    figures = elbo(predictor_of(run, "test", None, "cpu", "cache"))
    for name, value in figures.items():
        if isinstance(value, float):
            assert value == pytest.approx(run.record["test"][name], rel=1e-5), name


def test_its_runs_resume(sweep):
    run = sweep / "latent_dim-2__seed-0"
    overrides = json.loads((run / "point.json").read_text())["overrides"]
    done = cli(*overrides, *PLAIN, "trainer.max_epochs=3", f"hydra.run.dir={run}", "ckpt_path=last")
    assert done.returncode == 0, done.stdout
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 3


def test_its_results_are_reported(sweep):
    table = read_results(sweep).table
    records = [json.loads((path / "metrics.json").read_text()) for path in sorted(sweep.glob("latent_dim-*"))]
    finished = table[table.status == "finished"]
    assert finished.point.tolist() == ["latent_dim-2__seed-0", "latent_dim-4__seed-0"]
    assert finished.value.tolist() == [record["best"]["val/elbo"] for record in records]
