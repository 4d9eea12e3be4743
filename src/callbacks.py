"""Lightning callbacks: guard, reproducible noise, throughput, history, dashboard, figures."""

import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.model_summary import ModelSummary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from src import figures
from src.data.base import Batch, derive_seed
from src.errors import UserError
from src.models.base import BaseVAE


class NonFiniteGuard(Callback):
    """Stops a run whose loss or gradient is no longer a number, before the damage reaches a checkpoint.

    The loss is looked at in every step: at once on a CPU; on a GPU by a flag on the device that is read every
    ``log_every_n_steps`` and at the epoch's end, so that no step waits for it. Gradient norms are looked at every
    ``log_every_n_steps``, weights at the end of every epoch.

    Raises:
        UserError: names the step and the culprit: a term of the loss, or a parameter.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Clear the flag."""
        self._first_bad = torch.full((), -1, dtype=torch.long, device=pl_module.device)

    def on_before_backward(self, trainer: Trainer, pl_module: BaseVAE, loss: Tensor) -> None:
        """Look at the loss."""
        good = torch.isfinite(loss.detach())
        if loss.device.type == "cpu":
            if not good:
                self._stop(trainer, pl_module, trainer.global_step)
        else:
            self._first_bad = torch.where(good | (self._first_bad >= 0), self._first_bad, trainer.global_step)
            if trainer.global_step % trainer.log_every_n_steps == 0:
                self._read_flag(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: BaseVAE, optimizer: torch.optim.Optimizer) -> None:
        """Look at the gradients when the dashboard has just measured them."""
        norm = pl_module.step_terms.get("grad_norm")
        if norm is not None and not torch.isfinite(norm):
            bad = [
                name for name, p in pl_module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
            ]
            self._raise(trainer, f"the gradient of {_some(bad)} is not finite at step {trainer.global_step}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Look at the weights, and at the validation result, before they are saved."""
        self._read_flag(trainer, pl_module)
        value = trainer.callback_metrics.get("val/elbo")
        if _broken(pl_module) or (value is not None and not math.isfinite(value)):
            self._stop(trainer, pl_module, trainer.global_step)

    def _read_flag(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        if (step := int(self._first_bad)) >= 0:
            self._stop(trainer, pl_module, step)

    def _stop(self, trainer: Trainer, pl_module: BaseVAE, step: int) -> None:
        if bad := _broken(pl_module):
            self._raise(trainer, f"{_some(bad)} is no longer finite at step {step}: a gradient before it overflowed")
        terms = [name for name, value in pl_module.step_terms.items() if not math.isfinite(value)]
        self._raise(
            trainer, f"the {' and the '.join(terms) or 'elbo of the validation split'} is not finite at step {step}"
        )

    def _raise(self, trainer: Trainer, what: str) -> None:
        checkpoint = next((c for c in trainer.checkpoint_callbacks if getattr(c, "last_model_path", "")), None)
        kept = (
            f"the last good checkpoint is {checkpoint.last_model_path}" if checkpoint else "no epoch was complete yet"
        )
        raise UserError(
            f"training stopped in epoch {trainer.current_epoch}: {what}; {kept}. "
            "Lower optimizer.lr or set trainer.gradient_clip_val"
        )


def _broken(module: BaseVAE) -> list[str]:
    """Names of the parameters that hold a non-finite number."""
    return [name for name, p in module.named_parameters() if not p.detach().isfinite().all()]


def _some(names: list[str]) -> str:
    return names[0] + (f" (and of {len(names) - 1} more)" if len(names) > 1 else "")


class ReproducibleNoise(Callback):
    """Latent noise, dropout and dynamic binarization as a function of seed and epoch.

    So a resumed run draws what the uninterrupted one draws, every validation sees the same noise, and what the
    dashboard samples does not disturb training.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._stream: tuple[Tensor, list[Tensor]] | None = None

    def _start(self, trainer: Trainer, *what: object) -> None:
        torch.manual_seed(derive_seed(self.seed, *what, trainer.global_rank))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """A stream of its own for each epoch and process."""
        self._start(trainer, "train", trainer.current_epoch)

    def on_validation_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """The same stream at every validation; the training stream is put aside."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._stream = (torch.get_rng_state(), cuda)
        self._start(trainer, "validation")

    def on_validation_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Training goes on where it was."""
        if self._stream is not None:
            cpu, cuda = self._stream
            torch.set_rng_state(cpu)
            torch.cuda.set_rng_state_all(cuda)

    def on_test_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """The same stream at every test."""
        self._start(trainer, "test")


class Throughput(Callback):
    """Images trained on, and the seconds that took without validation; both go on when a run resumes."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self._since: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """Mean speed of training over all processes; None before the first epoch."""
        return self.images / self.seconds if self.seconds else None

    def _stop(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """The clock runs."""
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """The clock stands."""
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """The clock runs on: validation may come in the middle of an epoch."""
        if trainer.training:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: BaseVAE, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the images of all processes."""
        self.images += len(batch.x) * trainer.world_size

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """The clock stands."""
        self._stop()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"images": self.images, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.images, self.seconds = state_dict["images"], state_dict["seconds"]


class History(Checkpoint):
    """Metrics of every epoch, kept in the checkpoint so that a resumed run has all of them.

    A ``Checkpoint`` only because Lightning calls those after the module has logged its epoch. Where no progress bar is
    shown it prints a line an epoch.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Add the epoch."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs.append({"epoch": trainer.current_epoch, **metrics})
        if trainer.is_global_zero and not sys.stderr.isatty():
            shown = "  ".join(
                f"{name} {metrics[name]:.2f}"
                for name in ("train/elbo", "val/elbo", "val/distortion", "val/rate")
                if name in metrics
            )
            print(f"epoch {trainer.current_epoch}: {shown}", flush=True)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.epochs = list(state_dict["epochs"])


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, shown on terminals only and without the logger's version."""

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)
        if not sys.stderr.isatty():
            self.disable()

    def enable(self) -> None:
        """Lightning enables the bar of rank 0 itself: a file still gets none."""
        if sys.stderr.isatty():
            super().enable()

    def get_metrics(self, trainer: Trainer, pl_module: BaseVAE) -> dict[str, Any]:
        """The metrics marked for the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class Dashboard(Callback):
    """Everything in TensorBoard that is no metric of a split.

    Charts with training and validation together, step-wise loss, gradient norm and learning rate, reconstructions and
    samples as images, the rate of each latent as a histogram, hyperparameters with ``val/elbo``, config and summary.

    Args:
        every_n_epochs: how often images are drawn.
        num_images: how many of each, a multiple of 8.
        hyperparameters: flat names and values for the HParams tab; set by the entry point.
        config: the run's config as YAML text; set by the entry point.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        num_images: int = 16,
        hyperparameters: dict[str, Any] | None = None,
        config: str = "",
    ) -> None:
        self.every_n_epochs = every_n_epochs
        self.num_images = num_images
        self.hyperparameters = hyperparameters or {}
        self.config = config

    def _writer(self, trainer: Trainer) -> SummaryWriter | None:
        board = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        return board.experiment if board is not None and trainer.is_global_zero else None

    def on_fit_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Hyperparameters, config, summary and the layout of the charts."""
        if (writer := self._writer(trainer)) is None:
            return
        names = pl_module.metric_names(trainer.datamodule.pixels)
        writer.add_custom_scalars(
            {
                "nats per image": {
                    names.get(metric, metric): ["Multiline", [f"train/{metric}", f"val/{metric}"]]
                    for metric in ("elbo", "distortion", "rate", "loss")
                }
            }
        )
        # torch's own add_hparams would open a second run; this writes the three records into this one.
        metrics = dict.fromkeys(("val/elbo", "test/elbo"))
        for record in hparams(self.hyperparameters, metrics):
            writer.file_writer.add_summary(record)
        writer.add_text("config", f"```yaml\n{self.config}\n```")
        writer.add_text("model", f"```\n{ModelSummary(pl_module, max_depth=3)}\n```")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: BaseVAE, optimizer: torch.optim.Optimizer) -> None:
        """Measure the gradient norm (before clipping) in the steps that are logged."""
        if trainer.global_step % trainer.log_every_n_steps == 0:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            pl_module.step_terms["grad_norm"] = torch.nn.utils.get_total_norm(gradients)
            pl_module.step_terms["learning_rate"] = torch.tensor(optimizer.param_groups[0]["lr"])
            pl_module.step_terms["kl_weight"] = torch.tensor(pl_module.current_kl_weight)
            step = {f"step/{name}": float(value) for name, value in pl_module.step_terms.items()}
            for logger in trainer.loggers:
                logger.log_metrics(step, trainer.global_step)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Images and the histogram of the rates."""
        if (writer := self._writer(trainer)) is None or trainer.current_epoch % self.every_n_epochs:
            return
        originals, means, samples = draw(trainer, pl_module, "val", self.num_images)
        writer.add_image("reconstructions", figures.pairs(originals, means), trainer.global_step)
        writer.add_image("samples", figures.grid(samples), trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """The module has the rates of the latents by now."""
        if (writer := self._writer(trainer)) is not None:
            writer.add_histogram("rate_per_latent", pl_module.rate_per_latent, trainer.global_step)


class Figures(Callback):
    """Writes the run's pictures when it has been tested: reconstructions of test images, samples, loss curves.

    Args:
        folder: where the PNG files go.
        num_images: images in each picture, a multiple of 8.
    """

    def __init__(self, folder: str, num_images: int = 32) -> None:
        self.folder = Path(folder)
        self.num_images = num_images

    def on_test_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Draw with the tested weights."""
        if not trainer.is_global_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        originals, means, samples = draw(trainer, pl_module, "test", self.num_images)
        pairs = figures.picture(figures.pairs(originals, means), "Test images, each row over its reconstructions")
        self._save("reconstructions", pairs)
        self._save("samples", figures.picture(figures.grid(samples), "Samples: mean of p(x|z), z from the prior"))
        history = next((c for c in trainer.callbacks if isinstance(c, History)), None)
        if history is not None and history.epochs:
            names = pl_module.metric_names(trainer.datamodule.pixels)
            self._save("losses", figures.loss_curves(history.epochs, names))

    def _save(self, name: str, figure: figures.Figure) -> None:
        figure.savefig(self.folder / f"{name}.png", dpi=120, bbox_inches="tight")


@torch.no_grad()
def draw(trainer: Trainer, model: BaseVAE, part: str, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images of a split, their reconstructions, and samples: means of p(x|z), each ``[count, C, H, W]``.

    Fewer where the split is smaller. Reconstructions take z at the posterior mean.
    """
    originals = trainer.datamodule.examples(part, count).to(model.device)
    means = model.decode(model.posterior(originals).mean).mean
    samples = model.generate(count).mean
    return originals, means, samples
