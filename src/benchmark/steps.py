"""Training steps of ``src.train`` beside the tutorials' loop and the best one written by hand, round by round."""

import itertools
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from src.benchmark.by_hand import Network, scaled
from src.benchmark.gate import Round
from src.benchmark.loops import Loop
from src.benchmark.settings import composed
from src.data.base import ImageDataModule
from src.data.batches import StoredImages
from src.models.base import BaseVAE
from src.runs import build
from src.system.console import progress
from src.system.errors import UserError

WARM_UP = 4  # steps before the rounds, one of them before the gate of a loop written by hand
CHECKED_IMAGES = 8
TOLERANCE = 1e-4  # relative, of the loss and of the gradient; float32 on a CPU with equal noise


class Steps(NamedTuple):
    """Measurements of one experiment."""

    experiment: str
    images: str  # the data set, or "random images"
    batch_size: int
    precision: str
    bare: dict[str, str]  # the fastest variant of each kind of the bare loop
    seconds: dict[str, list[float]]  # of a step: one value per round, for each loop
    peak_memory_mib: dict[str, float]  # of each loop

    def row(self) -> dict[str, Any]:
        """Return medians and spread, as a row of the CSV.

        Ratios are speeds of ours over that of another loop in the same round; their median is not the ratio of medians.
        """
        row: dict[str, Any] = {"experiment": self.experiment, "precision": self.precision}
        for loop, seconds in self.seconds.items():
            if loop != "ours":
                ratios = [other / ours for other, ours in zip(seconds, self.seconds["ours"], strict=True)]
                row[f"ours/{loop}"] = statistics.median(ratios)
                row |= {f"ours/{loop} min": min(ratios), f"ours/{loop} max": max(ratios)}
        for loop, seconds in self.seconds.items():
            step = statistics.median(seconds)
            row |= {f"{loop} images/s": self.batch_size / step, f"{loop} ms/step": 1000 * step}
            row[f"{loop} peak MiB"] = self.peak_memory_mib[loop]
        return row | {"bare": "; ".join(self.bare.values()), "batch_size": self.batch_size, "images": self.images}


def check_loss(model: BaseVAE, datamodule: ImageDataModule) -> None:
    """See that the loops minimise the same loss: on one batch with equal weights and noise, loss and gradient agree.

    Ours is the real training step on a batch of the real loader's kind. The model must be on the CPU, in float32.

    Raises:
        UserError: where loss or gradient differ by more than :data:`TOLERANCE`, relative to the larger of the two.
    """
    indices = datamodule.splits.train[:CHECKED_IMAGES]
    batch = StoredImages(datamodule.pool, indices)[torch.arange(len(indices))]
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def differentiated(loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in gradients])

    L.seed_everything(0, verbose=False)
    loss = Network(model)(scaled(batch.x))
    by_hand = {"loss": loss.detach(), "gradient": differentiated(loss)}
    L.seed_everything(0, verbose=False)
    loss = model.training_step(datamodule.on_after_batch_transfer(batch, 0), 0)["loss"]
    ours = {"loss": loss.detach(), "gradient": differentiated(loss)}
    for name, value in ours.items():
        difference = (value - by_hand[name]).norm() / torch.maximum(value.norm(), by_hand[name].norm())
        if not difference <= TOLERANCE:
            raise UserError(
                f"nothing to compare: on the same batch the {name} of src.train and that of the loops written by hand "
                f"differ by {difference:.2g} of it (tolerance {TOLERANCE:g}); they know the ELBO of grey pixels under "
                "a Bernoulli only"
            )


def measure(experiment: str, images: str, overrides: Sequence[str], rounds: int, seconds: float) -> Steps:
    """Time the steps of the tutorial's loop, of each kind of the bare one and of ours, in turns in each round.

    Args:
        experiment: a choice of ``experiment=``.
        images: what to call the images.
        overrides: more of the command line, such as ``trainer=gpu``.
        rounds: rounds; the order of the loops changes from one to the next.
        seconds: what a round of the fastest loop should last.

    Raises:
        UserError: where the loops do not minimise the same loss, a loop fails, or an epoch has too few batches.
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
    with Loop("bare", command) as trial:  # in a process that ends: its memory does not count as the loop's
        bare = trial.note
    with ExitStack() as stack:
        loops = {"tutorial": Loop("tutorial", command)}
        loops |= {kind: Loop("bare", command, variant) for kind, variant in bare.items()}
        loops["ours"] = Loop("ours", command)
        for loop in loops.values():
            stack.enter_context(loop)
        warm = {name: [loop.run(1), loop.run(2)][1] for name, loop in loops.items()}
        fastest = min(round_.seconds / round_.steps for round_ in warm.values())
        steps = max(1, min(most, round(seconds / fastest)))
        for loop in loops.values():
            loop.run(steps)  # one more round to warm up
        taken: dict[str, list[Round]] = {name: [] for name in loops}
        orders = itertools.cycle(itertools.permutations(loops))  # so that no loop always follows the same one
        for _, order in zip(progress(range(rounds), experiment), orders, strict=False):
            for name in order:
                taken[name].append(loops[name].run(steps))
    return Steps(
        experiment,
        images,
        datamodule.batch_size,
        cfg.trainer.precision,
        bare,
        {name: [done.seconds / done.steps for done in all_rounds] for name, all_rounds in taken.items()},
        {name: all_rounds[-1].peak_memory_mib for name, all_rounds in taken.items()},
    )
