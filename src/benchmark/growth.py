"""Measure how the time of training grows with the number of images, their side, latents and depth.

``python -m src.benchmark.growth`` trains one network on random images, prints the exponents of the growth beside those
that its counted operations let expect, and writes them to ``outputs/benchmark`` (``growth.md``, ``growth.csv``).
"""

if not __package__:  # started as a file, it does not find the project
    raise SystemExit(f"error: type python -m src.benchmark.growth in {__file__.rpartition('src')[0]}")

import logging
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.benchmark.images import write_idx
from src.benchmark.settings import CONF, composed
from src.system.cli import command
from src.system.errors import UserError
from src.system.files import quoted

log = logging.getLogger(__name__)
KEYS = {"images": None, "sides": "data.image_size", "latents": "model.latent_dim", "depths": "model.depth"}
IMAGES = 4000  # where their number does not grow; nine tenths are trained on
BATCHES = 100  # of theirs in an epoch are measured; some more warm up, or are missing where the split is uneven
FIXED = (
    *("data=mnist", "data.download=false", "data.checksum=null", "data.image_size=32", "data.batch_size=32"),
    *("trainer.max_epochs=-1", "~callbacks.early_stopping"),
)


def exponent(values: Mapping[int, float]) -> float:
    """Return the b of ``value = a * size^b``, fitted to the values of some sizes by least squares of logarithms."""
    return statistics.linear_regression([*map(math.log, values)], [*map(math.log, values.values())]).slope


def sizes_of(settings: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the sizes that each axis grows through; axes without any are left out.

    Raises:
        UserError: there is no such network, an axis has one size only, or none has any.
    """
    known = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
    if settings["network"] not in known:
        raise UserError(f"network={settings['network']}: choose from {', '.join(known)}")
    sizes = {axis: sorted(set(settings[axis])) for axis in KEYS if settings[axis]}
    for axis, some in sizes.items():
        if len(some) < 2:
            raise UserError(f"{axis}={some}: give two different sizes or more, or [] to leave {axis} out")
    if not sizes:
        raise UserError(f"nothing grows: give sizes for one of {', '.join(KEYS)}")
    return sizes


def operations(words: Sequence[str]) -> int:
    """Count the floating-point operations of an image's way through the model of a command; no image is read.

    Raises:
        UserError: the model cannot be made.
    """
    import torch

    from src.models.footprint import work_of
    from src.runs import build

    cfg = composed(*words)
    model = build.build_model(cfg, build.build_datamodule(cfg)).eval()
    return work_of(model, lambda: model.infer(torch.zeros(1, *model.image_shape))).operations


def timed(axis: str, commands: Mapping[int, Sequence[str]], rounds: int, seconds: float) -> dict[int, float]:
    """Return the median seconds of an epoch, where images grow, else of a step, for the command of each size.

    Raises:
        UserError: a training fails.
    """
    from src.benchmark.loops import OURS, Loop
    from src.benchmark.steps import in_turns
    from src.runs import build

    with ExitStack() as stack:
        loops = {size: stack.enter_context(Loop(OURS, words)) for size, words in commands.items()}
        if axis == "images":
            data = {size: build.build_datamodule(composed(*words)) for size, words in commands.items()}
            steps = {size: max(1, len(some.splits.train) // some.batch_size) for size, some in data.items()}
        else:  # all rounds lie within the first epoch, which ends with a validation
            warm = min(loop.run(1).seconds for loop in loops.values())
            steps = dict.fromkeys(loops, max(1, min(BATCHES // (rounds + 1), round(seconds / warm))))
        taken = in_turns(loops, steps, rounds, axis)
    medians = {size: statistics.median(done.seconds for done in some) for size, some in taken.items()}
    return medians if axis == "images" else {size: median / steps[size] for size, median in medians.items()}


@command("growth")
def main(cfg: DictConfig) -> None:
    """Let one axis grow after the other."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    sizes = sizes_of(settings)
    # Import torch after the settings are checked: a typo is answered at once.
    from src.benchmark.table import Table
    from src.system.console import hush_libraries

    hush_libraries()
    table = Table("growth", settings)
    log.info("%s\n", table.conditions)
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:

        def words(axis: str, size: int) -> list[str]:
            root = Path(folder, str(size if axis == "images" else IMAGES))
            grown = [f"{KEYS[axis]}={size}"] if KEYS[axis] else []
            return [f"model={settings['network']}", *FIXED, *table.overrides, f"data.root={quoted(root)}", *grown]

        commands = {axis: {size: words(axis, size) for size in some} for axis, some in sizes.items()}
        work = {axis: {size: operations(one) for size, one in some.items()} for axis, some in commands.items()}
        work |= {"images": {size: size * count for size, count in work.get("images", {}).items()}}  # of an epoch
        for number in {IMAGES, *sizes.get("images", [])}:
            write_idx(Path(folder, str(number), "MNIST", "raw"), number, number // 10)
        for axis, some in commands.items():
            seconds = timed(axis, some, settings["rounds"], settings["seconds"])
            fits = {"exponent": exponent(seconds), "expected": exponent(work[axis])}
            cells = {
                "what grows": f"{axis}: {' / '.join(map(str, seconds))}",
                "seconds": " / ".join(f"{value:.3g}" for value in seconds.values()),
                "of": "an epoch" if axis == "images" else "a step",
                **{name: f"{value:.2f}" for name, value in fits.items()},
            }
            columns = ("axis", "size", "seconds", "operations")
            points = [(axis, size, seconds[size], work[axis][size]) for size in seconds]
            table.add(cells, *(dict(zip(columns, point, strict=True)) | fits for point in points))
    log.info("%s\n\nWritten to %s", table, table.folder)


if __name__ == "__main__":
    main()
