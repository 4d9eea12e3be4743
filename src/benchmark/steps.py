"""Training steps of ``src.train`` beside those of the other contenders, round by round."""

import logging
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

import lightning as L
import torch
from torch import Tensor

from src.benchmark.by_hand import Network, scaled
from src.benchmark.gate import Round
from src.benchmark.loops import COMPILED, OURS, Loop, contenders, present
from src.benchmark.settings import composed
from src.data.base import ImageDataModule
from src.data.batches import StoredImages
from src.models.base import BaseVAE
from src.runs import build
from src.system.console import progress
from src.system.errors import UserError
from src.training.acceleration import on_gpu

T = TypeVar("T")
log = logging.getLogger(__name__)

WARM_UP = 4  # steps before the rounds, the first of them before the gate
TRIAL_STEPS = 5
CHECKED_IMAGES = 8
TOLERANCE = 1e-4  # relative, of the loss and of the gradient; float32 on a CPU with equal noise


class Steps(NamedTuple):
    """Measurements of one experiment."""

    experiment: str
    images: str  # the data set, or "random images"
    batch_size: int
    precision: str
    seconds: dict[str, list[float]]  # of a step: one value per round, for each contender; NaN for one left out
    peak_memory_mib: dict[str, float]  # of each contender; NaN for one left out
    layouts: dict[str, str]  # the memory layout that was fastest, for each contender that tries several

    def row(self) -> dict[str, Any]:
        """Return medians and spread, as a row of the CSV.

        Ratios are of speeds in the same round: ours to that of each rival, and ours compiled to ours. The median of
        the ratios is not the ratio of the medians.
        """
        row: dict[str, Any] = {"experiment": self.experiment, "precision": self.precision}
        pairs = [(OURS, rival) for rival in self.seconds if rival not in (OURS, COMPILED)] + [(COMPILED, OURS)]
        for one, other in pairs:
            ratios = [theirs / its for its, theirs in zip(self.seconds[one], self.seconds[other], strict=True)]
            row[f"{one}/{other}"] = statistics.median(ratios)
            row |= {f"{one}/{other} min": min(ratios), f"{one}/{other} max": max(ratios)}
        for name, seconds in self.seconds.items():
            step = statistics.median(seconds)
            row |= {f"{name} images/s": self.batch_size / step, f"{name} ms/step": 1000 * step}
            row[f"{name} peak MiB"] = self.peak_memory_mib[name]
        layouts = "; ".join(f"{name}: {layout}" for name, layout in self.layouts.items())
        return row | {"layout": layouts, "batch_size": self.batch_size, "images": self.images}

    def cells(self) -> dict[str, str]:
        """Return a row of the table: ratios first, with their spread over the rounds; then speed and memory."""
        row, names = self.row(), list(self.seconds)
        ratios = [key.removesuffix(" min") for key in row if key.endswith(" min")]
        spread = {key: f"{row[key]:.2f} ({row[f'{key} min']:.2f}–{row[f'{key} max']:.2f})" for key in ratios}
        cells = {
            "experiment": self.experiment,
            **{key.replace("/", " / "): ratio for key, ratio in spread.items()},
            f"images/s: {' / '.join(names)}": " / ".join(f"{row[f'{name} images/s']:,.0f}" for name in names),
            f"ms per step: {OURS}": f"{row[f'{OURS} ms/step']:,.1f}",
            f"peak MiB: {' / '.join(names)}": " / ".join(f"{self.peak_memory_mib[name]:,.0f}" for name in names),
            **{name: row[name] for name in ("precision", "layout", "images")},
        }
        return {name: text.replace("nan (nan–nan)", "–").replace("nan", "–") for name, text in cells.items()}


def check_loss(model: BaseVAE, datamodule: ImageDataModule) -> None:
    """See that the loops minimise the same loss: on one batch with equal weights and noise, loss and gradient agree.

    Ours is the real training step on a batch of the real loader's kind. The model must be on the CPU, in float32.

    Raises:
        UserError: where loss or gradient differ by more than :data:`TOLERANCE`, relative to the larger of the two.
    """
    indices = datamodule.splits.train[:CHECKED_IMAGES]
    batch = StoredImages(datamodule.pool, indices)[torch.arange(len(indices))]
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def differentiated(loss_of: Callable[[], Tensor]) -> dict[str, Tensor]:
        L.seed_everything(0, verbose=False)
        loss = loss_of()
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        return {"loss": loss.detach(), "gradient": torch.cat([gradient.flatten() for gradient in gradients])}

    network, x = Network(model), scaled(batch.x)
    rivals = {"the loops written by hand": lambda: network(x)}
    if present("pythae"):
        from src.benchmark import peer

        vae = peer.vae(network)
        rivals["pythae"] = lambda: vae({"data": x}).loss
    mine = datamodule.on_after_batch_transfer(batch, 0)
    ours = differentiated(lambda: model.training_step(mine, 0)["loss"])
    for rival, loss_of in rivals.items():
        for name, theirs in differentiated(loss_of).items():
            difference = (ours[name] - theirs).norm() / torch.maximum(ours[name].norm(), theirs.norm())
            if not difference <= TOLERANCE:
                raise UserError(
                    f"nothing to compare: on the same batch the {name} of src.train and that of {rival} "
                    f"differ by {difference:.2g} of it (tolerance {TOLERANCE:g}); the others know the ELBO of grey "
                    "pixels under a Bernoulli only"
                )


def fastest(loops: Sequence[str], command: Sequence[str]) -> str:
    """Return the fastest of some loops, without those that fail; they take a few steps in turns, in other processes.

    Raises:
        UserError: each of them fails.
    """
    if len(loops) == 1:
        return loops[0]
    with ExitStack() as stack:
        running: dict[str, Loop] = {}
        for loop in loops:
            try:
                running[loop] = stack.enter_context(Loop(loop, command))
            except UserError:
                if loop == loops[-1] and not running:
                    raise
        rounds = [{loop: one.run(1).seconds for loop, one in running.items()} for _ in range(2 * TRIAL_STEPS)]
    measured = rounds[TRIAL_STEPS:]  # the first half warms up
    return min(running, key=lambda loop: statistics.median(taken[loop] for taken in measured))


def in_turns(loops: Mapping[T, Loop], steps: Mapping[T, int], rounds: int, what: str) -> dict[T, list[Round]]:
    """Let each loop take its steps in each round, in an order that changes, after a round that warms up.

    ``what`` names this in the progress bar.

    Raises:
        UserError: a loop fails.
    """
    for name, loop in loops.items():
        loop.run(steps[name])
    taken: dict[T, list[Round]] = {name: [] for name in loops}
    orders = random.Random(0)
    for _ in progress(range(rounds), what):
        for name in orders.sample(list(loops), len(loops)):
            taken[name].append(loops[name].run(steps[name]))
    return taken


def measure(experiment: str, images: str, overrides: Sequence[str], rounds: int, seconds: float) -> Steps:
    """Time the training steps of all contenders in turns.

    Args:
        experiment: a choice of ``experiment=``.
        images: what to call the images.
        overrides: more of the command line, such as ``trainer=gpu``.
        rounds: rounds; the order of the loops changes from one to the next.
        seconds: what a round of the fastest loop should last.

    Raises:
        UserError: where the loops do not minimise the same loss, a loop that needs no compiler fails, or an epoch has
            too few batches.
    """
    command = [f"experiment={experiment}", *overrides]
    cfg = composed(*command)
    build.fill_precision(cfg)
    datamodule = build.build_datamodule(cfg)
    batches = len(datamodule.splits.train) // datamodule.batch_size
    most = (batches - WARM_UP) // (rounds + 1)  # within one epoch: validation and checkpoints are no steps
    if most < 1:
        raise UserError(f"rounds={rounds}: an epoch of {experiment} has {batches} batches, too few for so many")
    check_loss(build.build_model(cfg, datamodule), datamodule)
    with ExitStack() as stack:
        loops, layouts = {}, {}
        for contender in contenders(on_gpu(cfg)):
            words = [*command, *contender.overrides]
            try:
                loop = fastest(contender.loops, words)
                loops[contender.name] = stack.enter_context(Loop(loop, words))
            except UserError as error:
                if not contender.compiled:
                    raise
                log.warning("%s: %s is left out: %s", experiment, contender.name, error)
                continue
            if len(contender.loops) > 1:
                layouts[contender.name] = loop.split()[-1]
        warm = [[loop.run(1), loop.run(2)][1] for loop in loops.values()]
        steps = max(1, min(most, round(seconds / min(done.seconds / done.steps for done in warm))))
        taken = in_turns(loops, dict.fromkeys(loops, steps), rounds, experiment)
    names = [contender.name for contender in contenders(on_gpu(cfg))]
    nothing = [Round(1, math.nan, math.nan)] * rounds
    taken = {name: taken.get(name, nothing) for name in names}
    return Steps(
        experiment,
        images,
        datamodule.batch_size,
        cfg.trainer.precision,
        {name: [done.seconds / done.steps for done in all_rounds] for name, all_rounds in taken.items()},
        {name: all_rounds[-1].peak_memory_mib for name, all_rounds in taken.items()},
        layouts,
    )
