"""Configure training: optimizer and learning rate, gradient clipping, and checks of precision and batch size."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import nn

from src.data.base import ImageDataModule
from src.models.base import BaseVAE
from src.system.directions import mode_of
from src.system.errors import UserError, memory_full, one_line
from src.training.optimizers import lay_out_state, optimizer_of

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class Schedule(NamedTuple):
    """Describe a learning-rate schedule: its factory, how often it steps, and the metric that it may monitor."""

    factory: Callable[[torch.optim.Optimizer], Any]
    interval: str  # "epoch" or "step"
    monitor: str | None = None
    frequency: int | None = None  # in intervals; None for every one

    def scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        """Return the scheduler of an optimizer; ``mode`` follows from the monitored metric, see :func:`mode_of`."""
        options = dict(getattr(self.factory, "keywords", {}))
        given = options.pop("mode", None)
        if self.monitor and "mode" in inspect.signature(self.factory).parameters:
            given = mode_of(self.monitor, given, "schedule.factory.mode")
        make = getattr(self.factory, "func", self.factory)
        return make(optimizer, **options, **({} if given is None else {"mode": given}))


class Recipe:
    """Train a model with one optimizer.

    Args:
        optimizer: called with parameters, or with groups of them.
        schedule: the learning-rate schedule; None for a constant rate.
    """

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer], schedule: Schedule | None = None) -> None:
        self._optimizer = optimizer
        self._schedule = schedule

    def check(self, trainer: L.Trainer, model: BaseVAE, datamodule: ImageDataModule) -> None:
        """Check precision and batch size.

        Raises:
            UserError: the model cannot be trained with them.
        """
        if trainer.precision not in PRECISIONS:
            raise UserError(f"trainer.precision={trainer.precision}: choose one of {', '.join(PRECISIONS)}")
        normalized = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        needed = 2 * trainer.world_size
        images = len(datamodule.splits.train)
        if normalized and min(datamodule.batch_size, images) < needed:
            too_few = (
                f"{images} training image{'s' * (images > 1)}"
                if images < needed
                else f"data.batch_size={datamodule.batch_size}"
            )
            raise UserError(
                f"{too_few}: this model has batch norm, which needs at least 2 images in each process: take more, or a "
                "model without it, such as model=conv_shallow"
            )

    def begin(self, trainer: L.Trainer) -> None:
        """Give the state of a resumed optimizer the memory layout of its weights."""
        for optimizer in trainer.optimizers:
            lay_out_state(optimizer)

    def optimizer(self, model: BaseVAE) -> torch.optim.Optimizer:
        """Return a new optimizer of all parameters of a model.

        Raises:
            UserError: the optimizer cannot be made.
        """
        return _make("optimizer", optimizer_of, model, self._optimizer)

    def optimizers(self, model: BaseVAE) -> Any:
        """Return the optimizer, with its learning-rate schedule if there is one, as Lightning takes them.

        Raises:
            UserError: one of them cannot be made.
        """
        optimizer = self.optimizer(model)
        # Otherwise Lightning lets a fused optimizer unscale float16 gradients in its step, too late for the guard and
        # for clipping: https://github.com/Lightning-AI/pytorch-lightning/pull/15555
        optimizer._step_supports_amp_scaling = False
        if self._schedule is None:
            return optimizer
        scheduler = _make("schedule", self._schedule.scheduler, optimizer)
        schedule = {
            "scheduler": scheduler,
            "interval": self._schedule.interval,
            "frequency": self._schedule.frequency or 1,
        }
        if self._schedule.monitor:
            schedule["monitor"] = self._schedule.monitor
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def clip(self, model: BaseVAE, limit: float | None, algorithm: str | None) -> None:
        """Clip the gradients by ``trainer.gradient_clip_val``, with any optimizer.

        Lightning refuses to clip for fused optimizers under mixed precision, because they may unscale float16 gradients
        in their step (ours do not, see :meth:`optimizers`): https://github.com/Lightning-AI/pytorch-lightning/pull/21436
        """
        if not limit:
            return
        if algorithm == "value":
            nn.utils.clip_grad_value_(model.parameters(), limit)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), limit)


def _make(what: str, make: Callable[..., Any], *args: Any) -> Any:
    try:
        return make(*args)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        if memory_full(error):
            raise
        raise UserError(f"the {what} cannot be made: {one_line(error)}") from error
