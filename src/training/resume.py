"""Make a resumed run end as an uninterrupted one."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from src.models.base import BaseVAE
from src.system.directions import mode_of
from src.system.seeds import derive_seed, random_state, set_random_state


class ReproducibleNoise(Callback):
    """Make latent noise, dropout and dynamic binarization a function of seed and epoch.

    A resumed run then draws the same numbers as an uninterrupted one, every validation sees the same noise, and the
    dashboard's samples do not change training.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._training_state: tuple[Tensor, list[Tensor]] | None = None

    def _seed_stream(self, trainer: Trainer, *names: object) -> None:
        torch.manual_seed(derive_seed(self.seed, *names, trainer.global_rank))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Start a stream for the epoch and the process."""
        self._seed_stream(trainer, "train", trainer.current_epoch)

    def on_validation_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Save the state of the training stream and start the same stream for every validation."""
        self._training_state = random_state()
        self._seed_stream(trainer, "validation")

    def on_validation_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Restore the training stream."""
        if self._training_state is not None:
            set_random_state(self._training_state)

    def on_test_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Start the same stream for every test."""
        self._seed_stream(trainer, "test")


class PatientEarlyStopping(EarlyStopping):
    """Stop early as Lightning does, and do not train another epoch when a stopped run is resumed.

    Lightning's own callback would: https://github.com/Lightning-AI/pytorch-lightning/issues/8278

    Args:
        monitor: the metric; see :func:`mode_of` for ``mode``.
        **options: arguments of Lightning's callback.
    """

    def __init__(self, monitor: str, mode: str | None = None, **options: Any) -> None:
        super().__init__(monitor, mode=mode_of(monitor, mode, "early_stopping.mode"), **options)

    def on_train_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Stop if the restored counter has reached the patience."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class StepLimit(Callback):
    """End training, with a validation, after ``max_steps`` optimizer steps.

    It also ends an epoch that is not complete; a resume begins with the next one. Lightning's own limit breaks the
    resume: the FitLoop ends the finished epoch of a checkpoint a second time, without a validation. See
    https://github.com/Lightning-AI/pytorch-lightning/issues/19617 and https://github.com/Lightning-AI/pytorch-lightning/issues/18645
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def on_train_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Stop if a resumed run has already reached the limit."""
        self._stop_at_limit(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: BaseVAE, *args: Any) -> None:
        """Stop if the step was the last one."""
        self._stop_at_limit(trainer)

    def _stop_at_limit(self, trainer: Trainer) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.max_steps


class BestCheckpoint(ModelCheckpoint):
    """Keep a checkpoint of the best epoch, also after the run folder was moved.

    Lightning forgets the best epoch when ``dirpath`` has changed: https://github.com/Lightning-AI/pytorch-lightning/issues/15705

    Args:
        monitor: the metric, None to keep the latest epoch; see :func:`mode_of` for ``mode``.
        **options: arguments of Lightning's callback.
    """

    def __init__(self, monitor: str | None = None, mode: str | None = None, **options: Any) -> None:
        mode = "min" if monitor is None else mode_of(monitor, mode, "checkpoint.mode")
        super().__init__(monitor=monitor, mode=mode, **options)
        self.best_metrics: dict[str, float] = {}  # of the validation at the best epoch
        self.best_epoch: int | None = None  # counted from 0
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Remember that this epoch was validated."""
        self._validated = True
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Save the epoch if it is the best; skip it if the metric needs a validation that it did not have."""
        if self._validated or not str(self.monitor).startswith("val/"):
            super().on_train_epoch_end(trainer, pl_module)
        self._validated = False

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if filepath == self.best_model_path:
            metrics = trainer.callback_metrics.items() if self._validated else ()  # else those of an earlier epoch
            self.best_metrics = {name: float(value) for name, value in metrics if name.startswith("val/")}
            self.best_epoch = trainer.current_epoch
        super()._save_checkpoint(trainer, filepath)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the callback with the number and the metrics of the best epoch."""
        return {**super().state_dict(), "best_metrics": self.best_metrics, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state with the path that the best checkpoint has in this folder."""
        best = str(Path(self.dirpath) / Path(state_dict["best_model_path"]).name)
        if Path(best).is_file():
            moved = {"dirpath": self.dirpath, "best_model_path": best, "kth_best_model_path": best}
            super().load_state_dict({**state_dict, **moved, "best_k_models": {best: state_dict["best_model_score"]}})
            self.best_metrics = dict(state_dict.get("best_metrics", {}))
            self.best_epoch = state_dict.get("best_epoch")
