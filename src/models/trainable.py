"""What Lightning asks of a model besides its loss: it is handed on to the model's recipe."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


class Recipe(Protocol):
    """How a model is trained; :class:`src.training.recipe.Recipe` implements it."""

    def check(self, trainer: L.Trainer, model: "Trainable", datamodule: L.LightningDataModule) -> None:
        """Raise a UserError if the trainer cannot train the model."""

    def begin(self, trainer: L.Trainer) -> None:
        """Prepare the optimizer's state that a resumed training has read."""

    def optimizers(self, model: "Trainable") -> Any:
        """Return what Lightning's ``configure_optimizers`` does."""

    def clip(self, model: "Trainable", limit: float | None, algorithm: str | None) -> None:
        """Clip the gradients."""


class Trainable(L.LightningModule):
    """A module that a recipe trains.

    Args:
        recipe: how the model is trained; a model that is only used needs none.
    """

    def __init__(self, recipe: Recipe | None) -> None:
        super().__init__()
        self.recipe = recipe
        # The latest training batch's mean loss, distortion and rate, detached; the guard adds the gradient's norm.
        self.step_terms = torch.zeros(3)
        self.step_grad_norm: Tensor | None = None
        # loss_and_rows as src.training.compilation has compiled it, for training only.
        self.compiled: Callable[..., tuple[Tensor, Tensor]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the name of the current hook, which Lightning sets at each of them, bypasses nn.Module."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def on_fit_start(self) -> None:
        self.recipe.check(self.trainer, self, self.trainer.datamodule)

    def on_train_start(self) -> None:
        self.recipe.begin(self.trainer)

    def configure_optimizers(self) -> Any:
        return self.recipe.optimizers(self)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        self.recipe.clip(self, gradient_clip_val, gradient_clip_algorithm)


@contextlib.contextmanager
def in_float32(device_type: str) -> Iterator[None]:
    """Turn off autocast and, on a GPU, TF32, in which convolutions keep only 10 bits of each factor's mantissa."""
    convolutions = torch.backends.cudnn
    before = convolutions.allow_tf32
    convolutions.allow_tf32 = False
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        convolutions.allow_tf32 = before


@contextlib.contextmanager
def as_evaluated(*networks: nn.Module) -> Iterator[None]:
    """Let layers that behave otherwise in training behave as in evaluation: batch norm and dropout.

    The others keep their mode: cuDNN computes no gradient of an LSTM in eval mode.
    """
    layers = [m for net in networks for m in net.modules() if isinstance(m, _BatchNorm | _DropoutNd) and m.training]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True
