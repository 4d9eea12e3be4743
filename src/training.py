"""Training itself, from new weights or from a checkpoint, and the test of the weights that it has chosen."""

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from src.checkpoints import read_weights, restoring
from src.data.base import ImageDataModule
from src.errors import INTERRUPTED, TERMINATED, UserError
from src.evaluation.likelihood import tested
from src.models.base import BaseVAE
from src.runs import RunFolder, Start


def fit(trainer: L.Trainer, model: BaseVAE, datamodule: ImageDataModule, start: Start) -> bool:
    """Train; whether there was anything left to do, which a resumed run may have done before.

    Raises:
        UserError: a new run has not taken a single step, or the checkpoint cannot be gone on from.
    """
    try:
        trainer.fit(model, datamodule, ckpt_path=start.resume, weights_only=True)
    except Exception as error:
        if isinstance(error, UserError) or not restoring(error):
            raise
        raise UserError(
            f"cannot go on from {start.resume} ({type(error).__name__}: {error}): it is damaged or from elsewhere"
        ) from error
    if start.resume is not None:
        return trainer.global_step > start.checkpoint["global_step"]
    if trainer.global_step == 0:
        raise UserError(
            f"not one step was taken: there are {trainer.num_training_batches} batches an epoch, trainer.max_epochs is "
            f"{trainer.max_epochs}; look at trainer.limit_train_batches and at what else ends a training"
        )
    return True


def test_best(
    trainer: L.Trainer, model: BaseVAE, datamodule: ImageDataModule, run: RunFolder
) -> dict[str, float | int]:
    """Figures of the test split under the best weights; under the last ones where no best were kept."""
    # Only the weights: trainer.test(ckpt_path=...) would also set the callbacks back to the best epoch.
    if run.best.exists():
        model.load_state_dict(read_weights(run.best, model))
    return tested(trainer, model, datamodule)


def exit_status(stop: SystemExit) -> int:
    """What a training ends with that a signal has stopped; Lightning ends with 1 on Ctrl-C and with 0 on SIGTERM."""
    return TERMINATED if isinstance(stop, SIGTERMException) else INTERRUPTED
