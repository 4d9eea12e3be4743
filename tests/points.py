"""Points of sweeps for tests: short-lived processes, and finished ones on the disk."""

import itertools
import json
import math
from pathlib import Path

from src.sweeps.plan import Plan, point_name
from src.sweeps.points import Point
from src.system.processes import Cold, Starter
from src.system.warm import Warm

WORKER = ["tests.worker"]
STARTERS: dict[str, Starter] = {"cold": Cold(), "warm": Warm(["json"])}


def point(folder: Path, *overrides: str, start: str = "cold") -> Point:
    """A point whose process is ``worker.py``, started anew or forked from a warm one."""
    return Point(folder, Plan({"value": "1,2"}, {}), overrides, 0, WORKER, STARTERS[start])


def record(**changes) -> dict:
    """A ``metrics.json`` as trainings write it."""
    whole = {
        "test": {"elbo": -100.0, "distortion": 80.0, "rate": 20.0, "active_latents": 2},
        "best": {"val/elbo": -99.0},
        "likelihood": "bernoulli",
        "pixels": "grey",
        "pseudo_likelihood": True,
        "latent_dim": 2,
        "kl_weight": 1.0,
        "trainable_parameters": 1000,
        "data": {"name": "mnist", "fingerprint": "f" * 32},
        "epochs": 5,
        "steps": 50,
        "precision": "32-true",
        "devices": "1 x cpu",
        "seed": 0,
        "seconds": 60.0,
        "train_images_per_second": 500.0,
        "peak_memory_mib": {"process": 900.0},
        "git_commit": "abc",
        "config": {"seed": 0, "callbacks": {"checkpoint": {"mode": "max"}}},
    }
    return {**whole, **changes}


def write_point(sweep: Path, swept, overrides, number=0, metrics=None, status="finished", error=None) -> Path:
    folder = sweep / point_name(overrides, dict.fromkeys(swept))
    folder.mkdir(parents=True)
    entry = {"overrides": overrides, "number": number, "status": status, "error": error}
    entry |= {"attempts": 1, "seconds": 90.0}
    (folder / "point.json").write_text(json.dumps(entry))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def write_grid(sweep: Path, grid: dict[str, list], figures, fixed=()) -> dict[str, dict]:
    """A sweep of finished points; ``figures(values)`` gives what differs in their records."""
    sweep.mkdir(parents=True, exist_ok=True)
    Plan(
        {key: ",".join(map(str, values)) for key, values in grid.items()}, dict(fixed), "python -m src.train -m ..."
    ).save(sweep)
    written = {}
    for place, values in enumerate(itertools.product(*grid.values())):
        typed = dict(zip(grid, values, strict=True))
        metrics = record(**figures(typed))
        overrides = [f"{key}={value}" for key, value in [*fixed, *typed.items()]]
        written[write_point(sweep, grid, overrides, place, metrics).name] = metrics
    return written


def trade(typed: dict) -> dict:
    """Rate and distortion that depend on the KL weight, the latents and a little on the seed."""
    latents, weight, seed = (typed.get(key, 1) for key in ("model.latent_dim", "model.kl_weight", "seed"))
    rate = 2.0 * latents / weight**0.5
    distortion = 70 + 100 * math.exp(-rate / 8) + [0, 0.3, -0.2][seed]
    test = {"elbo": -rate - distortion, "distortion": distortion, "rate": rate, "active_latents": int(latents)}
    return {"test": test, "best": {"val/elbo": -rate - distortion}, "latent_dim": int(latents), "seed": seed}
