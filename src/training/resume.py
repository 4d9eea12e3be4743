"""What makes a resumed run end as the uninterrupted one."""

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
        self._stream = random_state()
        self._start(trainer, "validation")

    def on_validation_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Training goes on where it was."""
        if self._stream is not None:
            set_random_state(self._stream)

    def on_test_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """The same stream at every test."""
        self._start(trainer, "test")


class PatientEarlyStopping(EarlyStopping):
    """Lightning's early stopping, which also stays stopped: a run that had stopped does not train on when resumed.

    Args:
        monitor: the metric; see :func:`mode_of` for ``mode``.
        **options: as for Lightning's.
    """

    def __init__(self, monitor: str, mode: str | None = None, **options: Any) -> None:
        super().__init__(monitor, mode=mode_of(monitor, mode, "early_stopping.mode"), **options)

    def on_train_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Its counter has been restored by now."""
        trainer.should_stop = trainer.should_stop or self.wait_count >= self.patience


class StepLimit(Callback):
    """Ends training, with a validation, once it has taken ``max_steps`` optimizer steps.

    In mid-epoch that ends the epoch: a resume begins with the next one.
    In place of Lightning's own limit, with which no run can be taken up again: its FitLoop then holds the finished
    epoch of a checkpoint for an unfinished one, and ends it a second time with nothing validated.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def on_train_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """A resumed run may have reached it."""
        self._look(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: BaseVAE, *args: Any) -> None:
        """After the step."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.max_steps


class BestCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint of the best epoch, whose memory of it belongs to the run folder and moves with that.

    Args:
        monitor: the metric, None to keep the latest epoch; see :func:`mode_of` for ``mode``.
        **options: as for Lightning's.
    """

    def __init__(self, monitor: str | None = None, mode: str | None = None, **options: Any) -> None:
        mode = "min" if monitor is None else mode_of(monitor, mode, "checkpoint.mode")
        super().__init__(monitor=monitor, mode=mode, **options)
        self.best_metrics: dict[str, float] = {}  # of the validation at the best epoch
        self.saved_at: int | None = None  # the optimizer step after which the best epoch was saved
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """There is something to choose by."""
        self._validated = True
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Look at the epoch, unless it is to be judged by a validation and had none."""
        if self._validated or not str(self.monitor).startswith("val/"):
            super().on_train_epoch_end(trainer, pl_module)
        self._validated = False

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if filepath == self.best_model_path:
            metrics = trainer.callback_metrics.items()
            self.best_metrics = {name: float(value) for name, value in metrics if name.startswith("val/")}
            self.saved_at = trainer.global_step
        super()._save_checkpoint(trainer, filepath)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {**super().state_dict(), "best_metrics": self.best_metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember this folder's file, wherever the folder was when it was written."""
        best = str(Path(self.dirpath) / Path(state_dict["best_model_path"]).name)
        if Path(best).is_file():
            moved = {"dirpath": self.dirpath, "best_model_path": best, "kth_best_model_path": best}
            super().load_state_dict({**state_dict, **moved, "best_k_models": {best: state_dict["best_model_score"]}})
            self.best_metrics = dict(state_dict.get("best_metrics", {}))
