"""How a model is trained: its optimizer and learning rate, clipping, and what a trainer must be able to do."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import nn

from src.models.base import BaseVAE
from src.system.directions import mode_of
from src.system.errors import UserError, memory_full, one_line
from src.training.optimizers import lay_out_state, optimizer_of

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class Schedule(NamedTuple):
    """A learning-rate schedule: its factory, when it steps (every so many epochs or steps), the metric it may watch."""

    factory: Callable[[torch.optim.Optimizer], Any]
    interval: str  # "epoch" or "step"
    monitor: str | None = None
    frequency: int | None = None

    def scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """The scheduler of an optimizer; one that watches a metric in a ``mode`` is told which, see :func:`mode_of`."""
        options = dict(getattr(self.factory, "keywords", {}))
        given = options.pop("mode", None)
        if self.monitor and "mode" in inspect.signature(self.factory).parameters:
            given = mode_of(self.monitor, given, "schedule.factory.mode")
        make = getattr(self.factory, "func", self.factory)
        return make(optimizer, **options, **({} if given is None else {"mode": given}))


class Recipe:
    """Trains a model with one optimizer.

    Args:
        optimizer: called with parameters, or with groups of them.
        schedule: of the learning rate, or None for a constant one.
    """

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer], schedule: Schedule | None = None) -> None:
        self._optimizer = optimizer
        self._schedule = schedule

    def check(self, trainer: L.Trainer, model: BaseVAE) -> None:
        """See that precision and batch size are ones that the model can be trained with.

        Raises:
            UserError: they are not.
        """
        if trainer.precision not in PRECISIONS:
            raise UserError(f"trainer.precision={trainer.precision}: choose one of {', '.join(PRECISIONS)}")
        normalized = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        datamodule, needed = trainer.datamodule, 2 * trainer.world_size
        images = len(datamodule.splits.train)
        if normalized and min(datamodule.batch_size, images) < needed:
            few = (
                f"{images} training image{'s' * (images > 1)}"
                if images < needed
                else f"data.batch_size={datamodule.batch_size}"
            )
            raise UserError(
                f"{few}: this model has batch norm, which needs at least 2 images in each process: take more, or a "
                "model without it, such as model=conv_shallow"
            )

    def begin(self, trainer: L.Trainer) -> None:
        """Lay a resumed optimizer's state out as its weights are."""
        for optimizer in trainer.optimizers:
            lay_out_state(optimizer)

    def optimizer(self, model: BaseVAE) -> torch.optim.Optimizer:
        """A new optimizer of all parameters of a model.

        Raises:
            UserError: it cannot be made.
        """
        return _made("optimizer", optimizer_of, model, self._optimizer)

    def optimizers(self, model: BaseVAE) -> Any:
        """The optimizer, and its learning-rate schedule where there is one.

        Raises:
            UserError: one of them cannot be made.
        """
        optimizer = self.optimizer(model)
        # Else Lightning leaves it to a fused optimizer to unscale float16's gradients in its step: too late for the
        # guard, which would take scaled ones for diverged, and for clipping.
        optimizer._step_supports_amp_scaling = False
        if self._schedule is None:
            return optimizer
        scheduler = _made("schedule", self._schedule.scheduler, optimizer)
        schedule = {
            "scheduler": scheduler,
            "interval": self._schedule.interval,
            "frequency": self._schedule.frequency or 1,
        }
        if self._schedule.monitor:
            schedule["monitor"] = self._schedule.monitor
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def clip(self, model: BaseVAE, limit: float | None, algorithm: str | None) -> None:
        """Clip as ``trainer.gradient_clip_val`` says, also with a fused optimizer.

        Lightning refuses those under any mixed precision, as they may unscale float16's gradients themselves; ours
        never do, see :meth:`optimizers`.
        """
        if not limit:
            return
        if algorithm == "value":
            nn.utils.clip_grad_value_(model.parameters(), limit)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), limit)


def _made(what: str, make: Callable[..., Any], *args: Any) -> Any:
    try:
        return make(*args)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        if memory_full(error):
            raise
        raise UserError(f"the {what} cannot be made: {one_line(error)}") from error
