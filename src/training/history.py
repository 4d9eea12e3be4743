"""Record epochs and speed over interruptions, and print the progress of training."""

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, TQDMProgressBar

from src.data.batches import Batch
from src.models.base import BaseVAE
from src.system.console import duration
from src.system.directions import as_printed, loss_is_elbo
from src.training.guard import NonFiniteGuard
from src.training.resume import BestCheckpoint

log = logging.getLogger(__name__)

LONG = 90.0  # seconds of a whole training; a shorter one shows no remaining time
LONG_EPOCH = 10.0  # seconds of an epoch; a longer one shows no tenths


class Throughput(Callback):
    """Count training images, the seconds of training without validation, and all seconds, also over a resume."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self._elapsed_before = self._elapsed_at_step = 0.0
        self._created = time.perf_counter()
        self._since: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """Return the mean speed of training over all processes; None before the first epoch."""
        return self.images / self.seconds if self.seconds else None

    @property
    def elapsed(self) -> float:
        """Return the seconds of the whole run: up to the checkpoint that it was resumed from, and since."""
        return self._elapsed_before + time.perf_counter() - self._created

    def _stop(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Start the timer."""
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Stop the timer."""
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Start the timer again: validation may come in the middle of an epoch."""
        if trainer.state.fn == "fit":
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: BaseVAE, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the images of all processes."""
        self.images += len(batch.x) * trainer.world_size
        self._elapsed_at_step = self.elapsed

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Stop the timer."""
        self._stop()
        self._elapsed_at_step = self.elapsed

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, which are the same for all checkpoints of a step."""
        return {"images": self.images, "seconds": self.seconds, "elapsed": self._elapsed_at_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts."""
        self.images, self.seconds = state_dict["images"], state_dict["seconds"]
        self._elapsed_before = self._elapsed_at_step = state_dict["elapsed"]


class History(Callback):
    """Keep the metrics of every epoch, also in the checkpoint, so that a resumed run has all of them.

    An epoch without validation gets no ``val/`` metrics; Lightning's ``callback_metrics`` repeat those of the last one.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Remember that this epoch was validated."""
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Append the metrics of the epoch."""
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self._validated or not name.startswith("val/")
        }
        self._validated = False
        self.epochs.append({"epoch": trainer.current_epoch, **metrics})

    def state_dict(self) -> dict[str, Any]:
        """Return the metrics of all epochs."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the metrics of all epochs."""
        self.epochs = list(state_dict["epochs"])


def epochs_of(trainer: Trainer) -> list[dict[str, float]]:
    """Return the metrics of every epoch so far; the kept one also has ``kept``. Empty without a :class:`History`."""
    epochs = next((c.epochs for c in trainer.callbacks if isinstance(c, History)), [])
    return mark_kept(epochs, next((c.best_epoch for c in kept_by(trainer)), None))


def mark_kept(epochs: list[dict[str, float]], best: int | None) -> list[dict[str, float]]:
    """Return the epochs with ``kept`` added to the one with the number ``best``."""
    return [{**epoch, "kept": 1.0} if epoch["epoch"] == best else epoch for epoch in epochs]


def kept_by(trainer: Trainer) -> list[BestCheckpoint]:
    """Return the callbacks that keep a best checkpoint."""
    return [c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)]


class EpochLine(Checkpoint):
    """Log a line an epoch: its metrics, the seconds it took, and the time left.

    It is a ``Checkpoint``, and the last one, because those run after all other callbacks: it sees the epoch's metrics
    and whether the epoch was kept as the best.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Start the timer."""
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Log the line."""
        self._seconds.append(time.perf_counter() - self._began)
        epochs = epochs_of(trainer)
        if not epochs or not trainer.is_global_zero:
            return
        seconds = f"{self._seconds[-1]:.{1 if self._seconds[-1] < LONG_EPOCH else 0}f} s"
        best = " (best)" if any(c.best_epoch == trainer.current_epoch for c in kept_by(trainer)) else ""
        parts = [f"epoch {_number(trainer)}{best}", *_figures(trainer, pl_module, epochs[-1]), seconds]
        if not trainer.should_stop:
            parts[-1] += _time_left(trainer.current_epoch + 1, trainer.max_epochs, self._seconds)
        log.info("  ".join(parts))


def _number(trainer: Trainer) -> str:
    """Return the epoch, counted from 1, and the limit if there is one, such as ``3/10``."""
    limit = trainer.max_epochs
    return f"{trainer.current_epoch + 1}" + (f"/{limit}" if limit is not None and limit > 0 else "")


def _time_left(done: int, epochs: int | None, seconds: Sequence[float]) -> str:
    """Return ``, about 4 min left``; an empty text after the last epoch and if the whole training is short.

    Args:
        done: number of finished epochs.
        epochs: number of epochs in all; None or -1 without a limit.
        seconds: durations of epochs.
    """
    mean = sum(seconds) / len(seconds)
    shown = epochs and epochs > done and epochs * mean > LONG
    return f", about {duration((epochs - done) * mean)} left" if shown else ""


def _figures(trainer: Trainer, module: BaseVAE, epoch: dict[str, float]) -> list[str]:
    """Return the epoch's metrics in words, in nats per image; the −elbo, as papers print it: less is better."""
    names = module.metric_names(trainer.datamodule.pixels)
    elbo = f"−{names.get('elbo', 'elbo')}"
    parts = []
    if "val/elbo" in epoch:
        parts = [f"val {elbo} {-epoch['val/elbo']:.2f}"]
        parts += [f"{name} {epoch[f'val/{name}']:.2f}" for name in ("distortion", "rate")]
        if (bound := module.loss.bound) is not None:
            parts.append(f"{as_printed(bound, names['elbo'])[0]} {-epoch[f'val/{bound}']:.2f}")
        elif not loss_is_elbo(epoch, "val"):
            parts.append(f"loss {epoch['val/loss']:.2f}")
    elif "val/distortion" in epoch:
        parts = [f"val {names.get('distortion', 'distortion')} {epoch['val/distortion']:.2f}"]
    if "train/elbo" in epoch:
        parts.append(f"train {'' if parts else f'{elbo} '}{-epoch['train/elbo']:.2f}")
    elif "train/distortion" in epoch:
        parts.append(f"train {'' if parts else 'distortion '}{epoch['train/distortion']:.2f}")
    return parts


class ProgressBar(TQDMProgressBar):
    """Show Lightning's bar on terminals only, with the loss that the guard has read last."""

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)
        if not sys.stderr.isatty():
            self.disable()

    def enable(self) -> None:
        """Enable the bar on a terminal; Lightning calls this for rank 0 wherever the output goes."""
        if sys.stderr.isatty():
            super().enable()

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Number the epoch as the logged lines do."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(f"epoch {_number(trainer)}")

    def get_metrics(self, trainer: Trainer, pl_module: BaseVAE) -> dict[str, Any]:
        """Return the loss that the guard has read, so that the bar does not wait for the device."""
        terms = next((c.latest for c in trainer.callbacks if isinstance(c, NonFiniteGuard)), None)
        return {} if terms is None else {"loss": f"{terms.loss:.1f}"}
