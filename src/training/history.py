"""What a run remembers of itself, over interruptions, and what it says while it trains."""

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
from src.training.guard import NonFiniteGuard
from src.training.resume import BestCheckpoint

log = logging.getLogger(__name__)

LONG = 90.0  # seconds of a whole training, from which on the time that is left is worth saying
LONG_EPOCH = 10.0  # seconds, from which on their tenths are not


class Throughput(Callback):
    """Images trained on and the seconds that took without validation, and the whole time; all go on at a resume."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self._elapsed_before = self._elapsed_then = 0.0
        self._created = time.perf_counter()
        self._since: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """Mean speed of training over all processes; None before the first epoch."""
        return self.images / self.seconds if self.seconds else None

    @property
    def elapsed(self) -> float:
        """Seconds of the whole run: to the checkpoint it was resumed from, and since."""
        return self._elapsed_before + time.perf_counter() - self._created

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
        if trainer.state.fn == "fit":
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: BaseVAE, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the images of all processes."""
        self.images += len(batch.x) * trainer.world_size
        self._elapsed_then = self.elapsed

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """The clock stands."""
        self._stop()
        self._elapsed_then = self.elapsed

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from; the same for all checkpoints of a step."""
        return {"images": self.images, "seconds": self.seconds, "elapsed": self._elapsed_then}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.images, self.seconds = state_dict["images"], state_dict["seconds"]
        self._elapsed_before = self._elapsed_then = state_dict["elapsed"]


class History(Callback):
    """Keep the metrics of every epoch, also in the checkpoint, so that a resumed run has all of them.

    An epoch without validation has none of its metrics: Lightning would repeat those of the last validation.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """This epoch has one."""
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Add the epoch."""
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self._validated or not name.startswith("val/")
        }
        self._validated = False
        self.epochs.append({"epoch": trainer.current_epoch, **metrics})

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.epochs = list(state_dict["epochs"])


def epochs_of(trainer: Trainer) -> list[dict[str, float]]:
    """Return the metrics of every epoch so far; the kept one also has ``kept``. Empty without a :class:`History`."""
    epochs = next((c.epochs for c in trainer.callbacks if isinstance(c, History)), [])
    return mark_kept(epochs, next((c.best_metrics for c in kept_by(trainer)), {}))


def mark_kept(epochs: list[dict[str, float]], best: dict[str, float]) -> list[dict[str, float]]:
    """Return the epochs with ``kept`` added to the first one that has the metrics ``best``, if there is one."""
    kept = next((i for i, epoch in enumerate(epochs) if best and best.items() <= epoch.items()), None)
    return [{**epoch, "kept": 1.0} if i == kept else epoch for i, epoch in enumerate(epochs)]


def kept_by(trainer: Trainer) -> list[BestCheckpoint]:
    """Return the callbacks that keep a best checkpoint."""
    return [c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)]


class EpochLine(Checkpoint):
    """Says a line an epoch, above the bar and in the log: what it has come to, the seconds it took, the minutes left.

    A ``Checkpoint``, and the last of them, so that it knows the epoch's metrics and whether it was kept as the best.
    """

    def __init__(self) -> None:
        self._began = 0.0
        self._seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """The clock runs."""
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Say it."""
        self._seconds.append(time.perf_counter() - self._began)
        epochs = epochs_of(trainer)
        if not epochs or not trainer.is_global_zero:
            return
        epoch, of = epochs[-1], trainer.max_epochs
        parts = [f"epoch {_number(trainer)}", *_figures(trainer, pl_module, epoch), _took(self._seconds[-1])]
        if not trainer.should_stop:
            parts[-1] += _left(trainer.current_epoch + 1, of, self._seconds)
        log.info("  ".join(parts))


def _number(trainer: Trainer) -> str:
    """The epoch, counted from 1, and of how many."""
    most = trainer.max_epochs
    return f"{trainer.current_epoch + 1}" + (f"/{most}" if most is not None and most > 0 else "")


def _left(done: int, of: int | None, seconds: Sequence[float]) -> str:
    """Write ``, about 4 min left``; nothing after the last epoch, or where the whole training is short.

    Args:
        done: number of epochs that have ended.
        of: number of epochs in all; None or -1 where it is not limited.
        seconds: durations of epochs.
    """
    mean = sum(seconds) / len(seconds)
    return f", about {duration((of - done) * mean)} left" if of and of > done and of * mean > LONG else ""


def _took(seconds: float) -> str:
    """``0.3 s`` or ``36 s``: a tenth is noise in what takes longer."""
    return f"{seconds:.{1 if seconds < LONG_EPOCH else 0}f} s"


def _figures(trainer: Trainer, module: BaseVAE, epoch: dict[str, float]) -> list[str]:
    """The epoch's figures in nats per image, as papers print them: less is better."""
    names = module.metric_names(trainer.datamodule.pixels)
    elbo = f"−{names.get('elbo', 'elbo')}"
    said = []
    if "val/elbo" in epoch:
        best = " (best)" if any(c.saved_at == trainer.global_step for c in kept_by(trainer)) else ""
        said = [f"val {elbo} {-epoch['val/elbo']:.2f}{best}"]
        said += [f"{name} {epoch[f'val/{name}']:.2f}" for name in ("distortion", "rate")]
        said += [f"loss {epoch['val/loss']:.2f}"] if module.kl_weight != 1 else []
    if "train/elbo" in epoch:
        said.append(f"train {'' if said else f'{elbo} '}{-epoch['train/elbo']:.2f}")
    return said


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, shown on terminals only, with the loss of the step that the guard has looked at last."""

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)
        if not sys.stderr.isatty():
            self.disable()

    def enable(self) -> None:
        """Lightning enables the bar of rank 0 itself: a file still gets none."""
        if sys.stderr.isatty():
            super().enable()

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """The bar counts epochs as the lines above it do."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(f"epoch {_number(trainer)}")

    def get_metrics(self, trainer: Trainer, pl_module: BaseVAE) -> dict[str, Any]:
        """The loss; read from the device by the guard, so that the bar waits for nothing."""
        terms = next((c.latest for c in trainer.callbacks if isinstance(c, NonFiniteGuard)), None)
        return {} if terms is None else {"loss": f"{terms.loss:.1f}"}
