"""Tiny runs with extreme settings, in process: each must succeed, or name the setting that makes it diverge.

The advice is followed: the named setting is set to a safe value, and so on until the run succeeds. Each message must
name a setting that is not safe yet; and where several were named, none of them may have been harmless.
"""

import functools
import json
import math
import os
import random
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from src.data.base import ImageDataModule
from src.data.splits import ImagePool
from src.runs import build, record
from src.runs.fit import tested
from src.system.console import hush_libraries
from src.system.explain import explain
from tests.helpers import composed
from tests.torture.commands import LIMIT, Running, Settings, at_once
from tests.torture.table import Case, Table

RUNS = 1_000
PER_PROCESS = 25  # runs
SAFE = {
    "optimizer.lr": 1e-5,
    "model.kl_weight": 1.0,
    "model.likelihood.scale": 0.3,
    "trainer.precision": "32-true",
}
WORSE = {"optimizer.lr": 10.0, "model.kl_weight": 10.0, "model.likelihood.scale": 0.5}
BODIES = {
    "conv_tiny": ("model.encoder.widths=[4,8]", "model.decoder.widths=[4,8,8]", "model.encoder.hidden=8"),
    "lstm": ("model.encoder.hidden=8", "model.decoder.widths=[4,8]", "model.decoder.kernel_size=4",
             "model.decoder.stride=2", "model.decoder.padding=1"),
    "conv_deep": ("model.encoder.widths=[4,8]",),
}  # fmt: skip
LINE = re.compile(r"(optimizer\.lr|model\.kl_weight|model\.likelihood\.scale|trainer\.precision)=(\S+?)[:, ]")
Point = dict[str, Any]


class Plain(ImageDataModule):
    """64 images that are all black, all white, all grey, or noise."""

    def __init__(self, look: str, **common: Any) -> None:
        super().__init__("plain", channels=1, batch_size=16, val_fraction=0.2, test_fraction=0.2, **common)
        self.look = look

    def load_pool(self) -> ImagePool:
        """Return the images with different digests: equal ones would all be in one split."""
        shape, level = (64, 1, self.image_size, self.image_size), {"black": 0, "white": 255, "grey": 127}
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        images = noise if self.look == "noise" else torch.full(shape, level[self.look], dtype=torch.uint8)
        names = [f"{number}.png" for number in range(64)]
        return ImagePool(
            images=images,
            labels=torch.zeros(64, dtype=torch.long),
            classes=["one"],
            published=np.array([""] * 64),
            digests=[number.to_bytes(16, "big") for number in range(64)],
            names=names,
        )


def drawn(rng: random.Random) -> Point:
    """Draw the settings of one run."""
    point: Point = {
        "model": rng.choice(list(BODIES)),
        "optimizer": rng.choice(("adam", "sgd")),
        "optimizer.lr": 10 ** rng.uniform(-6, 3),
        "model.kl_weight": rng.choice((0.0, 1.0, 1.0, 10 ** rng.uniform(-3, 12), 10 ** rng.uniform(0, 38))),
        "model.kl_warmup_steps": rng.choice((0, 0, 3)),
        "model.latent_dim": rng.choice((1, 2, 8, 64, 512)),
        "model.depth": rng.choice((1, 1, 2, 4)),
        "likelihood": rng.choice(("bernoulli", "continuous_bernoulli", "gaussian", "gaussian", "learned")),
        "trainer.precision": rng.choice(("32-true", "32-true", "bf16-mixed")),
        "trainer.gradient_clip_val": rng.choice((None, None, 1.0, 100.0)),
        "trainer.detect_anomaly": rng.random() < 0.1,
        "look": rng.choice(("black", "white", "grey", "noise")),
        "size": rng.choice((8, 16)),
        "binarize": rng.choice(("none", "none", "threshold", "dynamic")),
    }
    if point["likelihood"] in ("gaussian", "learned"):
        point["model.likelihood.scale"] = rng.choice(
            (0.1, *(10 ** rng.uniform(low, high) for low, high in ((-2.5, 1), (-2.5, -1), (-30, 10))))
        )
    if point["model"] == "lstm":
        point["trainer.precision"] = "32-true"
    return point


@functools.cache
def base(model: str, optimizer: str, likelihood: str) -> DictConfig:
    """Compose a run of six steps in three epochs and a test, without pictures."""
    groups = (f"model={model}", *BODIES[model], f"optimizer={optimizer}", f"likelihood@model.likelihood={likelihood}")
    quiet = ("~logger", "~callbacks.dashboard", "~callbacks.figures", "~callbacks.progress_bar")
    limits = ("trainer.max_epochs=3", "trainer.limit_train_batches=2", "trainer.log_every_n_steps=1")
    return composed(*groups, *quiet, *limits, "+trainer.enable_progress_bar=false", "run_dir=.")


def config(point: Point, folder: str) -> DictConfig:
    """Return the config of a run, without its data."""
    likelihood = {"learned": "gaussian"}.get(point["likelihood"], point["likelihood"])
    cfg = base(point["model"], point["optimizer"], likelihood).copy()
    cfg.run_dir = folder
    if point["likelihood"] == "learned":
        cfg.model.likelihood.learned = True
    for key, value in point.items():
        if "." in key:
            OmegaConf.update(cfg, key, value)
    return cfg


def attempt(point: Point, folder: str) -> str | None:
    """Run a training; return the error message if it was stopped, None if it succeeded.

    Raises:
        ValueError: if it succeeded, but a metric or an image is not finite.
    """
    cfg = config(point, folder)
    L.seed_everything(0, verbose=False)
    try:
        datamodule = Plain(point["look"], image_size=point["size"], binarize=point["binarize"])
        model = build.build_model(cfg, datamodule)
        trainer = build.build_trainer(cfg)
        trainer.fit(model, datamodule)
        figures = tested(trainer, model, datamodule)
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        return line
    json.dumps(record.summarize(trainer, model, datamodule, figures, OmegaConf.to_container(cfg)), allow_nan=False)
    with torch.no_grad():
        if not model.eval().generate(4).mean.isfinite().all():
            raise ValueError("the weights that were kept draw images that are not finite")
    return None


def followed(point: Point, folder: str) -> tuple[list[str], list[str]]:
    """Follow the advice of the error messages; return the messages and the faults of the advice."""
    messages, settings, named = [], dict(point), []
    for _ in range(5):
        line = attempt(settings, folder)
        if line is None:
            return messages, _harmless(point, settings, named, folder) if len(named) > 1 else []
        messages.append(line)
        if (found := LINE.search(line)) is None:
            return messages, ["the message names no setting"]
        key, value = found.groups()
        if settings.get(key) == SAFE[key]:
            return messages, [f"{key} is named though it has a safe value"]
        if key != "trainer.precision" and not math.isclose(float(value), float(settings[key]), rel_tol=1e-4):
            return messages, [f"{key} is named with {value}, but it is {settings[key]}"]
        named.append(key)
        settings[key] = SAFE[key]
    return messages, ["the run still fails after five changes"]


def _harmless(point: Point, settings: Point, named: list[str], folder: str) -> list[str]:
    """Find named settings that are harmless: the run also succeeds with their original value, and a larger one."""

    def succeeds(key: str) -> bool:
        return all(attempt({**settings, key: point[key] * times}, folder) is None for times in (1.0, WORSE[key]))

    return [
        f"{key}={point[key]:g} is named, but is harmless once the others are safe"
        for key in named
        if key in WORSE and succeeds(key)
    ]


def cases(settings: Settings, table: Table) -> Iterator[Case]:
    """Run a thousand trainings, some in each process."""
    count = max(1, round(RUNS * settings.count))
    starts = range(0, count, PER_PROCESS)

    def work(start: int) -> list[Case]:
        folder = settings.folder / "numbers" / str(start)
        folder.mkdir(parents=True)
        words = [str(settings.seed), str(start), str(min(count, start + PER_PROCESS)), str(folder)]
        done = Running(words, "tests.torture.numbers").done(10 * LIMIT)
        lines = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
        found = [Case(**line) for line in lines]
        if done.status != 0:
            command = f"python -m tests.torture.numbers {' '.join(words)}"
            found.append(Case("numbers", f"runs from {start}", command, [f"status {done.status}"], done.output))
        return found

    stopped = 0
    for found in at_once(settings.jobs, work, starts):
        stopped += sum(bool(case.output) and not case.faults for case in found)
        table.note("numbers", f"{stopped} were stopped, and succeeded once the named settings were safe")
        yield from found


def main() -> None:
    """Run some of the trainings: ``python -m tests.torture.numbers SEED FIRST LAST FOLDER``."""
    seed, first, last, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    hush_libraries()
    warnings.filterwarnings("ignore")
    with open(Path(folder) / "cases.jsonl", "w") as file:
        for number in range(first, last):
            point = drawn(random.Random(f"{seed}/{number}"))
            try:
                messages, faults = followed(point, os.path.join(folder, str(number)))
            except Exception as error:  # a traceback, or a metric that is not finite
                messages, faults = [], [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
            shutil.rmtree(os.path.join(folder, str(number)), ignore_errors=True)
            command = f"python -m tests.torture.numbers {seed} {number} {number + 1} {folder}"
            case = Case("numbers", json.dumps(point), command, faults, "\n".join(messages))
            file.write(case.to_json() + "\n")


if __name__ == "__main__":
    main()
