"""Stop a run that has stopped making sense."""

import math
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from src.errors import Diverged
from src.models.base import BaseVAE

WATCHED = ("loss", "distortion", "rate", "grad_norm")


class NonFiniteGuard(Callback):
    """Stops a run whose loss or gradient is no longer a number, before the damage reaches a checkpoint.

    The terms of the loss and the gradient's norm are looked at in every step. On a GPU the first bad step of each is
    kept on the device and read every ``log_every_n_steps``, so that no step waits for it; on a CPU it is read at once.
    Weights are looked at before validation and before an epoch is saved.

    Args:
        read_every: steps between two readings; None for the device's own.

    Raises:
        Diverged: names the step and the culprit: a term of the loss, or a parameter.
    """

    def __init__(self, read_every: int | None = None) -> None:
        self.read_every = read_every
        self._first_bad: Tensor | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """No step has been bad."""
        self._first_bad = torch.full((len(WATCHED),), -1, device=pl_module.device)
        self._parameters = list(pl_module.parameters())  # walking the module costs more than the norm of a small one
        self._every = self.read_every or (1 if pl_module.device.type == "cpu" else max(1, trainer.log_every_n_steps))

    def on_before_backward(self, trainer: Trainer, pl_module: BaseVAE, loss: Tensor) -> None:
        """Look at the terms of the loss."""
        self._look_at(trainer, pl_module, pl_module.step_terms, slice(0, 3))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: BaseVAE, optimizer: torch.optim.Optimizer) -> None:
        """Measure the gradient's norm (before clipping) and look at it."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        pl_module.step_grad_norm = torch.nn.utils.get_total_norm(gradients)
        self._look_at(trainer, pl_module, pl_module.step_grad_norm[None], slice(3, 4))

    def on_validation_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Look at the weights before anything is computed from them."""
        if trainer.state.fn == "fit":
            self._look_at_weights(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Look at the weights and at the validation's result before they are saved."""
        self._look_at_weights(trainer, pl_module)
        value = trainer.callback_metrics.get("val/elbo")
        if value is not None and not math.isfinite(value):
            self._stop(trainer, f"the elbo of the validation split is not finite after step {trainer.global_step}")

    def _look_at(self, trainer: Trainer, pl_module: BaseVAE, values: Tensor, where: slice) -> None:
        if self._every == 1 and all(map(math.isfinite, values.tolist())):
            return  # read at once, and well: what follows costs a small network 3 % of a step
        first = self._first_bad[where]
        self._first_bad[where] = torch.where(~values.isfinite() & (first < 0), trainer.global_step, first)
        if trainer.global_step % self._every == 0:
            self._read(trainer, pl_module)

    def _read(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        bad = {name: step for name, step in zip(WATCHED, self._first_bad.tolist(), strict=True) if step >= 0}
        if not bad:
            return
        step = min(bad.values())
        names = [name for name, first in bad.items() if first == step]
        if names == ["grad_norm"]:
            whose = [n for n, p in pl_module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            of = f" of {_some(whose)}" if step == trainer.global_step and whose else ""
            self._stop(trainer, f"the gradient{of} is not finite at step {step}")
        if step == trainer.global_step and (weights := _broken(pl_module)):
            self._stop(trainer, f"{_some(weights)} is not finite at step {step}")
        # The loss and the gradient only follow from the two terms: where one of them is bad, that one is named.
        culprits = [name for name in names if name in ("distortion", "rate")] or names[:1]
        self._stop(trainer, f"the {' and the '.join(culprits)} is not finite at step {step}")

    def _look_at_weights(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        self._read(trainer, pl_module)
        if weights := _broken(pl_module):
            self._stop(trainer, f"{_some(weights)} is not finite after step {trainer.global_step}")

    def _stop(self, trainer: Trainer, what: str) -> None:
        folders = [Path(c.dirpath) for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        saved = [folder / "last.ckpt" for folder in folders if (folder / "last.ckpt").exists()]
        kept = f"the last good checkpoint is {saved[0]}" if saved else "no epoch was complete yet"
        raise Diverged(
            f"training stopped in epoch {trainer.current_epoch}: {what}; {kept}. "
            "Lower optimizer.lr or set trainer.gradient_clip_val"
        )


def _broken(module: BaseVAE) -> list[str]:
    """Names of the parameters that hold a non-finite number."""
    return [name for name, p in module.named_parameters() if not p.detach().isfinite().all()]


def _some(names: list[str]) -> str:
    return names[0] + (f" (and of {len(names) - 1} more)" if len(names) > 1 else "")
