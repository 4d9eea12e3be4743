"""Stop a run that has stopped making sense, and name the setting that did it."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from src.models.base import BaseVAE
from src.system.errors import Diverged

GROWN = 1e3  # times the first step's: no training that comes to something does that
STEEP = 30.0  # nats a pixel in the first step: the likelihood's scale is far below its errors
PULL = 0.2  # the gradient's norm a pixel in the first steps of an ordinary loss (README, Stability)
FAR = 0.5  # length of a step: about the size of a weight
HOPELESS = 1e18  # KL weight: the square of any gradient is beyond float32
SMALLEST_LOSS_SCALE = 2.0**-10  # of float16's scaler, which starts at 2^16 and halves at each overflow


class Terms(NamedTuple):
    """Of a step or a split, in nats per image."""

    loss: float
    distortion: float
    rate: float

    def far_beyond(self, first: "Terms", pixels: int) -> bool:
        """Whether the network has gone astray since ``first``: its own two terms, whatever weighs them, say so."""
        bounds = ((self.distortion, max(abs(first.distortion), pixels)), (self.rate, max(first.rate, 1.0)))
        return not all(abs(now) <= GROWN * then for now, then in bounds)  # a NaN is beyond, too


class NonFiniteGuard(Callback):
    """Stops a run whose loss, gradient or figures are no longer numbers, before the damage reaches a file.

    The terms of the loss and the gradient's norm are looked at in every step. On a GPU they are kept on the device and
    read every ``log_every_n_steps``, so that no step waits for them; on a CPU they are read at once. Weights are looked
    at before validation and before an epoch is saved, the figures of a split when it ends.

    What is named as the cause is what was at hand when it happened: before any step it cannot be the learning rate;
    after steps it is that, unless the network's own terms are still of their first size (then it is what weighs them),
    or the loss was lopsided from the beginning and the weights went further than the rate alone explains.

    Args:
        read_every: steps between two readings; None for the device's own.

    Raises:
        Diverged: names the step, what is not finite (a term of the loss, or a parameter), and the setting with its
            value.
    """

    def __init__(self, read_every: int | None = None) -> None:
        self.read_every = read_every
        self._unread: list[tuple[int, str, Tensor]] = []  # step, what, values on the device
        self._first: Terms | None = None
        self._terms: Terms | None = None  # the last that were read

    @property
    def latest(self) -> Terms | None:
        """The terms of the loss that were read last."""
        return self._terms

    def on_fit_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """No step has been bad."""
        self._unread, self._first, self._terms, self._start = [], None, None, trainer.global_step
        self._parameters = list(pl_module.parameters())  # walking the module costs more than the norm of a small one
        self._every = self.read_every or (1 if pl_module.device.type == "cpu" else max(1, trainer.log_every_n_steps))
        self._largest = _largest(self._parameters)
        self._scale = float(pl_module.likelihood.scale) if hasattr(pl_module.likelihood, "scale") else None

    def on_before_backward(self, trainer: Trainer, pl_module: BaseVAE, loss: Tensor) -> None:
        """Look at the terms of the loss."""
        self._look_at(trainer, pl_module, "terms", pl_module.step_terms)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: BaseVAE, optimizer: torch.optim.Optimizer) -> None:
        """Measure the gradient's norm (before clipping) and look at it.

        Under float16 an overflow is nothing yet: the scaler leaves that step out and takes a smaller scale.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        pl_module.step_grad_norm = torch.nn.utils.get_total_norm(gradients)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None:
            self._look_at(trainer, pl_module, "gradient", pl_module.step_grad_norm[None])
        elif trainer.global_step % self._every == 0 and scaler.get_scale() < SMALLEST_LOSS_SCALE:
            what = f"the gradient overflows at step {trainer.global_step}"
            self._stop(trainer, pl_module, what, trainer.global_step, self._terms)

    def on_validation_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Look at the weights before anything is computed from them."""
        if trainer.state.fn == "fit":
            self._look_at_weights(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Look at the weights and at the validation's figures before they are saved."""
        self._look_at_weights(trainer, pl_module)
        self._look_at_figures(trainer, pl_module, "val", "validation")

    def on_test_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Look at the test's figures before they are recorded."""
        self._look_at_figures(trainer, pl_module, "test", "test")

    def on_exception(self, trainer: Trainer, pl_module: BaseVAE, exception: BaseException) -> None:
        """Say in our words what torch's anomaly detection has found (``trainer.detect_anomaly=true``)."""
        if "returned nan values" in str(exception):
            what = f"the gradient is not finite at step {trainer.global_step} ({exception})"
            self._stop(trainer, pl_module, what, trainer.global_step)

    def _look_at(self, trainer: Trainer, pl_module: BaseVAE, what: str, values: Tensor) -> None:
        self._unread.append((trainer.global_step, what, values))
        if trainer.global_step % self._every == 0:
            self._read(trainer, pl_module)

    def _read(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        unread, self._unread = self._unread, []
        numbers = iter(torch.cat([values for _, _, values in unread]).tolist() if unread else ())
        for step, what, values in unread:
            read = [next(numbers) for _ in values]
            if what == "terms":
                self._terms = Terms(*read)
                self._first = self._first or self._terms
            if not all(map(math.isfinite, read)):
                told = _told(trainer, pl_module, step, what, self._terms)
                self._stop(trainer, pl_module, told, step, self._terms)

    def _look_at_weights(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        self._read(trainer, pl_module)
        if weights := _broken(pl_module):
            step = trainer.global_step
            self._stop(trainer, pl_module, f"{_some(weights)} is not finite after step {step}", step)

    def _look_at_figures(self, trainer: Trainer, pl_module: BaseVAE, tag: str, split: str) -> None:
        figures = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(f"{tag}/")}
        bad = [name.removeprefix(f"{tag}/") for name, value in figures.items() if not math.isfinite(value)]
        if bad:
            name = "elbo" if "elbo" in bad else bad[0]
            what = f"the {name} of the {split} split is not finite after step {trainer.global_step}"
            terms = Terms(*(figures.get(f"{tag}/{term}", math.nan) for term in Terms._fields))
            self._stop(trainer, pl_module, what, trainer.global_step, terms)

    def _stop(self, trainer: Trainer, module: BaseVAE, what: str, step: int, terms: Terms | None = None) -> None:
        folders = [Path(c.dirpath) for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        saved = [folder / "last.ckpt" for folder in folders if (folder / "last.ckpt").exists()]
        kept = f"the last good checkpoint is {saved[0]}" if saved else "no epoch was complete yet"
        cause = self._cause(trainer, module, step, terms)
        raise Diverged(f"training stopped in epoch {trainer.current_epoch + 1}: {what}; {kept}. {cause}")

    # ---- the cause -------------------------------------------------------------------------------------------

    def _cause(self, trainer: Trainer, module: BaseVAE, step: int, terms: Terms | None) -> str:
        """The setting that did it, with its value, and what to do."""
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
        """The setting that makes the loss of these terms too steep, or the arithmetic that cannot hold them."""
        pixels, weight = math.prod(module.image_shape), module.kl_weight
        if terms is not None and weight > 1 and weight * max(terms.rate, 1.0) > abs(terms.distortion):
            return f"model.kl_weight={weight:g} is too high: lower it"
        if terms is not None and self._scale is not None and not abs(terms.distortion) < STEEP * pixels:
            return f"model.likelihood.scale={self._scale:g} is too small for the errors: raise it"
        if trainer.precision == "16-mixed":
            return "trainer.precision=16-mixed cannot hold these numbers: set bf16-mixed or 32-true"
        return None

    def _rate_explains(self, lr: float, pixels: int, clip: float | None, step: int) -> bool:
        """Whether the learning rate is too high however steep the loss is.

        Its steps are as long as the rate itself, such as Adam's; or they follow the gradient, and that of an ordinary
        loss would have been enough to throw the weights away.
        """
        if _largest(self._parameters) - self._largest <= 10 * lr * (step - self._start):
            return True
        return lr * min(PULL * pixels, clip or math.inf) > FAR


def _told(trainer: Trainer, module: BaseVAE, step: int, what: str, terms: Terms | None) -> str:
    """What is not finite, as far as that can still be seen."""
    now = step == trainer.global_step  # else the weights have moved on since
    if what == "gradient":
        whose = [n for n, p in module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        if now and not whose:
            return f"the gradient is too large for float32 at step {step}"
        return f"the gradient{f' of {_some(whose)}' if now else ''} is not finite at step {step}"
    if now and (weights := _broken(module)):
        return f"{_some(weights)} is not finite at step {step}"
    # The loss follows from the two terms: where one of them is bad, that one is named.
    bad = [name for name in ("distortion", "rate") if not math.isfinite(getattr(terms, name))]
    return f"the {' and the '.join(bad or ['loss'])} is not finite at step {step}"


def _broken(module: BaseVAE) -> list[str]:
    """Names of the parameters that hold a non-finite number."""
    return [name for name, p in module.named_parameters() if not p.detach().isfinite().all()]


def _some(names: list[str]) -> str:
    return names[0] + (f" (and of {len(names) - 1} more)" if len(names) > 1 else "")


def _largest(parameters: list[torch.nn.Parameter]) -> float:
    """The largest magnitude of a weight."""
    return float(torch.stack([p.detach().abs().max() for p in parameters]).max())
