"""What a run remembers of itself, over interruptions, and what it says while it trains."""

import logging
import sys
import time
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, TQDMProgressBar

from src.data.batches import Batch
from src.models.base import BaseVAE

log = logging.getLogger(__name__)


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


class History(Checkpoint):
    """Metrics of every epoch, kept in the checkpoint so that a resumed run has all of them.

    Those of the validation only where there was one: Lightning keeps the last one's. A ``Checkpoint`` only because
    Lightning calls those after the module has logged its epoch. Where no progress bar is shown it prints a line an
    epoch.
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
        if trainer.is_global_zero and not sys.stderr.isatty():
            names = pl_module.metric_names(trainer.datamodule.pixels)
            shown = [
                f"{stage} {names.get(name, name)} {metrics[f'{stage}/{name}']:.2f}"
                for stage, name in (("train", "elbo"), ("val", "elbo"), ("val", "distortion"), ("val", "rate"))
                if f"{stage}/{name}" in metrics
            ]
            log.info("epoch %d: %s", trainer.current_epoch, ", ".join(shown))

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
