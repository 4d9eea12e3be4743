"""Stop a run that has diverged, and name the setting that caused it."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from src.models.base import BaseVAE
from src.system.errors import Diverged

GROWN = 1e3  # growth over the first step's term that no useful training reaches
STEEP = 30.0  # nats a pixel in the first step; above it the likelihood's scale is far below the errors
PULL = 0.2  # gradient norm a pixel in the first steps of an ordinary loss (docs/loss.md, Stability)
FAR = 0.5  # step length that is about the size of a weight
HOPELESS = 1e18  # KL weight at which the square of any gradient overflows float32
SMALLEST_LOSS_SCALE = 2.0**-10  # float16's scaler starts at 2^16 and halves at each overflow


class Terms(NamedTuple):
    """Hold the terms of the loss of a step or a split, in nats per image."""

    loss: float
    distortion: float
    rate: float

    def far_beyond(self, first: "Terms", pixels: int) -> bool:
        """Return whether distortion or rate, without weights, has grown beyond all bounds since ``first``."""
        bounds = ((self.distortion, max(abs(first.distortion), pixels)), (self.rate, max(first.rate, 1.0)))
        return not all(abs(term) <= GROWN * bound for term, bound in bounds)  # also true for a NaN


class NonFiniteGuard(Callback):
    """Stop a run whose loss, gradient, weights or metrics are not finite, before they reach a file.

    The terms of the loss and the gradient norm are checked for every step. On a GPU they stay on the device and are
    read every ``log_every_n_steps``, so that no step waits for them; on a CPU they are read at once. Weights are
    checked before validation and before an epoch is saved, the metrics of a split when it ends.

    Before the first step the cause cannot be the learning rate. After it the learning rate is named, with two
    exceptions: distortion and rate have kept their first size (then a weight of theirs is too large), or the loss was
    lopsided from the beginning and the weights have moved further than the learning rate explains.

    Args:
        read_every: steps between two readings; None for the default of the device.

    Raises:
        Diverged: the message names the step, the term or parameter that is not finite, and the setting with its value.
    """

    def __init__(self, read_every: int | None = None) -> None:
        self.read_every = read_every
        self._unread: list[tuple[int, str, Tensor]] = []  # step, kind ("terms" or "gradient"), values on the device
        self._first: Terms | None = None
        self._terms: Terms | None = None  # those read last

    @property
    def latest(self) -> Terms | None:
        """Return the terms of the loss that were read last."""
        return self._terms

    def on_fit_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Reset the guard and choose how often it reads."""
        self._unread, self._first, self._terms, self._start = [], None, None, trainer.global_step
        self._parameters = list(
            pl_module.parameters()
        )  # iterating over the module takes longer than a small one's norm
        self._every = self.read_every or (1 if pl_module.device.type == "cpu" else max(1, trainer.log_every_n_steps))
        self._largest = _largest_weight(self._parameters)
        self._scale = float(pl_module.likelihood.scale) if hasattr(pl_module.likelihood, "scale") else None

    def on_before_backward(self, trainer: Trainer, pl_module: BaseVAE, loss: Tensor) -> None:
        """Check the terms of the loss."""
        self._check(trainer, pl_module, "terms", pl_module.step_terms)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: BaseVAE, optimizer: torch.optim.Optimizer) -> None:
        """Compute the gradient norm before clipping and check it.

        Under float16 an overflow alone is no divergence: the scaler skips that step and lowers its scale.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        pl_module.step_grad_norm = torch.nn.utils.get_total_norm(gradients)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None:
            self._check(trainer, pl_module, "gradient", pl_module.step_grad_norm[None])
        elif trainer.global_step % self._every == 0 and scaler.get_scale() < SMALLEST_LOSS_SCALE:
            what = f"the gradient overflows at step {trainer.global_step}"
            self._stop(trainer, pl_module, what, trainer.global_step, self._terms)

    def on_validation_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Check the weights before they are validated."""
        if trainer.state.fn == "fit":
            self._check_weights(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Check the validation's metrics before they are shown or saved."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._check_metrics(trainer, pl_module, "val", "validation")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Check the weights before they are saved."""
        self._check_weights(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Check the test's metrics before they are recorded."""
        self._check_metrics(trainer, pl_module, "test", "test")

    def on_exception(self, trainer: Trainer, pl_module: BaseVAE, exception: BaseException) -> None:
        """Report as :class:`Diverged` what torch's anomaly detection raises (``trainer.detect_anomaly=true``)."""
        if "returned nan values" in str(exception):
            what = f"the gradient is not finite at step {trainer.global_step} ({exception})"
            self._stop(trainer, pl_module, what, trainer.global_step)

    def _check(self, trainer: Trainer, pl_module: BaseVAE, kind: str, values: Tensor) -> None:
        self._unread.append((trainer.global_step, kind, values))
        if trainer.global_step % self._every == 0:
            self._read(trainer, pl_module)

    def _read(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        unread, self._unread = self._unread, []
        numbers = iter(torch.cat([values for _, _, values in unread]).tolist() if unread else ())
        for step, kind, values in unread:
            read = [next(numbers) for _ in values]
            if kind == "terms":
                self._terms = Terms(*read)
                self._first = self._first or self._terms
            if not all(map(math.isfinite, read)):
                what = _describe_non_finite(trainer, pl_module, step, kind, self._terms)
                self._stop(trainer, pl_module, what, step, self._terms)

    def _check_weights(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        self._read(trainer, pl_module)
        if names := _non_finite(pl_module):
            step = trainer.global_step
            self._stop(trainer, pl_module, f"{_first_of(names)} is not finite after step {step}", step)

    def _check_metrics(self, trainer: Trainer, pl_module: BaseVAE, tag: str, split: str) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(f"{tag}/")}
        terms = Terms(*(metrics.get(f"{tag}/{term}", math.nan) for term in Terms._fields))
        step = trainer.global_step
        bad = [name.removeprefix(f"{tag}/") for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            name = "elbo" if "elbo" in bad else bad[0]
            what = f"the {name} of the {split} split is not finite after step {step}"
            self._stop(trainer, pl_module, what, step, terms)
        # Finite and absurd is no result either, unless an earlier epoch is one.
        absurd = self._first and terms.loss > GROWN * max(abs(self._first.loss), math.prod(pl_module.image_shape))
        if absurd and all(c.best_model_score is None for c in trainer.checkpoint_callbacks if c.monitor):
            first = self._first.loss
            what = f"the loss of the {split} split is {terms.loss:.2g} after step {step}, and was {first:.2g} at first"
            self._stop(trainer, pl_module, what, step, terms)

    def _stop(self, trainer: Trainer, module: BaseVAE, what: str, step: int, terms: Terms | None = None) -> None:
        folders = [Path(c.dirpath) for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        saved = [folder / "last.ckpt" for folder in folders if (folder / "last.ckpt").exists()]
        kept = f"the last good checkpoint is {saved[0]}" if saved else "no epoch was complete yet"
        cause = self._cause(trainer, module, step, terms)
        raise Diverged(f"training stopped in epoch {trainer.current_epoch + 1}: {what}; {kept}. {cause}")

    # ---- the cause -------------------------------------------------------------------------------------------

    def _cause(self, trainer: Trainer, module: BaseVAE, step: int, terms: Terms | None) -> str:
        """Name the setting that caused it, with its value, and what to do."""
        moved = step > self._start
        pixels = math.prod(module.image_shape)
        astray = moved and (terms is None or self._first is None or terms.far_beyond(self._first, pixels))
        lopsided = self._lopsided(trainer, module, self._first if astray else terms)
        astray = astray and module.kl_weight < HOPELESS
        group = trainer.optimizers[0].param_groups[0]
        lr = float(group.get("initial_lr", group["lr"]))
        if lopsided and not (astray and self._rate_explains(lr, pixels, trainer.gradient_clip_val, step)):
            return lopsided
        if moved:
            clip = "" if trainer.gradient_clip_val else ", or set trainer.gradient_clip_val"
            return f"optimizer.lr={lr:g} is too high: lower it{clip}"
        return "No step was taken: the weights that it started with do not serve these images"

    def _lopsided(self, trainer: Trainer, module: BaseVAE, terms: Terms | None) -> str | None:
        """Name the setting that makes one term dominate the loss, or the precision that cannot hold it, if any."""
        pixels, weight = math.prod(module.image_shape), module.kl_weight
        if terms is not None and weight > 1 and weight * max(terms.rate, 1.0) > abs(terms.distortion):
            return f"model.kl_weight={weight:g} is too high: lower it"
        if terms is not None and self._scale is not None and not abs(terms.distortion) < STEEP * pixels:
            return f"model.likelihood.scale={self._scale:g} is too small for the errors: raise it"
        if trainer.precision == "16-mixed":
            return "trainer.precision=16-mixed cannot hold these numbers: set bf16-mixed or 32-true"
        return None

    def _rate_explains(self, lr: float, pixels: int, clip: float | None, step: int) -> bool:
        """Return whether the learning rate is too high for any loss.

        It is if the weights moved no further than steps of its length (Adam's) take them, or if steps along the
        gradient of an ordinary loss would already be too long.
        """
        if _largest_weight(self._parameters) - self._largest <= 10 * lr * (step - self._start):
            return True
        return lr * min(PULL * pixels, clip or math.inf) > FAR


def _describe_non_finite(trainer: Trainer, module: BaseVAE, step: int, kind: str, terms: Terms | None) -> str:
    """Name what is not finite: the parameter if that can still be told, else the gradient or the term of the loss."""
    current = step == trainer.global_step  # otherwise the weights have changed since
    if kind == "gradient":
        names = [n for n, p in module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        if current and not names:
            return f"the gradient is too large for float32 at step {step}"
        return f"the gradient{f' of {_first_of(names)}' if current else ''} is not finite at step {step}"
    if current and (names := _non_finite(module)):
        return f"{_first_of(names)} is not finite at step {step}"
    # The loss follows from the two terms, so name a term if one is not finite.
    bad = [name for name in ("distortion", "rate") if not math.isfinite(getattr(terms, name))]
    return f"the {' and the '.join(bad or ['loss'])} is not finite at step {step}"


def _non_finite(module: BaseVAE) -> list[str]:
    """Return the names of the parameters that hold a non-finite number."""
    return [name for name, p in module.named_parameters() if not p.detach().isfinite().all()]


def _first_of(names: list[str]) -> str:
    return names[0] + (f" (and of {len(names) - 1} more)" if len(names) > 1 else "")


def _largest_weight(parameters: list[torch.nn.Parameter]) -> float:
    """Return the largest magnitude of a weight."""
    return float(torch.stack([p.detach().abs().max() for p in parameters]).max())
