"""Tiny runs at the edge of numbers, in process: none ends non-finite without naming the setting that did it.

Whether the right one is named is tried: the setting is set to a tame value, and so on until the run ends well. Each
time a setting must be named that is not tame yet; and where it took several, none of them may have been harmless.
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
ASK = 25  # runs a process
TAME = {
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
    """Sixty-four images that are all black, all white, all grey, or noise."""

    def __init__(self, look: str, **common: Any) -> None:
        super().__init__("plain", channels=1, batch_size=16, val_fraction=0.2, test_fraction=0.2, **common)
        self.look = look

    def load_pool(self) -> ImagePool:
        """They count as different ones, or all were on one side of the splits."""
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
    """The settings of one run."""
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
    """Six steps in three epochs, a test, and all that a run does but its pictures."""
    groups = (f"model={model}", *BODIES[model], f"optimizer={optimizer}", f"likelihood@model.likelihood={likelihood}")
    quiet = ("~logger", "~callbacks.dashboard", "~callbacks.figures", "~callbacks.progress_bar")
    limits = ("trainer.max_epochs=3", "trainer.limit_train_batches=2", "trainer.log_every_n_steps=1")
    return composed(*groups, *quiet, *limits, "+trainer.enable_progress_bar=false", "run_dir=.")


def config(point: Point, folder: str) -> DictConfig:
    """The config of a run; its images are not in it."""
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
    """Run it; what was said where it was stopped, None where it ended well.

    Raises:
        ValueError: it ended well, and a figure is no number.
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
    """What was said while the advice was followed, and what was wrong with it."""
    said, tame, named = [], dict(point), []
    for _ in range(5):
        line = attempt(tame, folder)
        if line is None:
            return said, _needless(point, tame, named, folder) if len(named) > 1 else []
        said.append(line)
        if (found := LINE.search(line)) is None:
            return said, ["no setting is named"]
        key, value = found.groups()
        if tame.get(key) == TAME[key]:
            return said, [f"{key} is named, and it is tame"]
        if key != "trainer.precision" and not math.isclose(float(value), float(tame[key]), rel_tol=1e-4):
            return said, [f"{key} is named with {value}, and it is {tame[key]}"]
        named.append(key)
        tame[key] = TAME[key]
    return said, ["its advice leads nowhere"]


def _needless(point: Point, tame: Point, named: list[str], folder: str) -> list[str]:
    """Where several were named one after the other: those without whose mending it ends well, too.

    Not by a hair: ten times as much does no harm either.
    """

    def harmless(key: str) -> bool:
        return all(attempt({**tame, key: point[key] * times}, folder) is None for times in (1.0, WORSE[key]))

    return [
        f"{key}={point[key]:g} is named, and with the others mended it does no harm"
        for key in named
        if key in WORSE and harmless(key)
    ]


def cases(settings: Settings, table: Table) -> Iterator[Case]:
    """A thousand runs, some in each process."""
    count = max(1, round(RUNS * settings.count))
    starts = range(0, count, ASK)

    def work(start: int) -> list[Case]:
        folder = settings.folder / "numbers" / str(start)
        folder.mkdir(parents=True)
        words = [str(settings.seed), str(start), str(min(count, start + ASK)), str(folder)]
        done = Running(words, "tests.torture.numbers").done(10 * LIMIT)
        lines = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
        found = [Case(**line) for line in lines]
        if done.status != 0:
            command = f"python -m tests.torture.numbers {' '.join(words)}"
            found.append(Case("numbers", f"runs {start} and on", command, [f"status {done.status}"], done.output))
        return found

    stopped = 0
    for found in at_once(settings.jobs, work, starts):
        stopped += sum(bool(case.output) and not case.faults for case in found)
        table.note("numbers", f"{stopped} were stopped, and ended well once what was named was mended")
        yield from found


def main() -> None:
    """Some of the runs: ``python -m tests.torture.numbers SEED FIRST LAST FOLDER``."""
    seed, first, last, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    hush_libraries()
    warnings.filterwarnings("ignore")
    with open(Path(folder) / "cases.jsonl", "w") as file:
        for number in range(first, last):
            point = drawn(random.Random(f"{seed}/{number}"))
            try:
                said, faults = followed(point, os.path.join(folder, str(number)))
            except Exception as error:  # a traceback, or a figure that is no number
                said, faults = [], [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]
            shutil.rmtree(os.path.join(folder, str(number)), ignore_errors=True)
            command = f"python -m tests.torture.numbers {seed} {number} {number + 1} {folder}"
            case = Case("numbers", json.dumps(point), command, faults, "\n".join(said))
            file.write(case.to_json() + "\n")


if __name__ == "__main__":
    main()
