"""Train from new weights or a checkpoint, test the best weights, and write the record."""

import logging
import signal
import sys

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from src.data.base import ImageDataModule
from src.models.base import BaseVAE
from src.runs import record
from src.runs.build import hyperparameters
from src.runs.checkpoints import read_weights, restoring
from src.runs.folder import RunFolder, Start
from src.system.errors import UserError, disk_full, memory_full, one_line
from src.training.dashboard import Scalars

say = rank_zero_only(logging.getLogger(__name__).info)  # to the terminal and train.log


def run_to_its_end(
    run: RunFolder, cfg: DictConfig, trainer: L.Trainer, model: BaseVAE, datamodule: ImageDataModule, start: Start
) -> None:
    """Train, test and record; after an interruption, say how to resume.

    Raises:
        UserError: the run cannot be trained, or the disk is full.
        SystemExit: a signal stopped the run; the status is 128 plus its number, as in a shell.
    """
    try:
        describe(trainer, cfg)
        if not fit(trainer, model, datamodule, start):
            say(f"nothing was left to train after {trainer.current_epoch} epochs, {trainer.global_step} steps")
        figures = test(run, trainer, model, datamodule) if cfg.test else {}
        if trainer.is_global_zero:
            config = OmegaConf.to_container(cfg, resolve=True)
            metrics = record.summarize(trainer, model, datamodule, figures, config)
            run.write_record(metrics)
            say(record.report(run, metrics, record.kept_epoch(trainer)))
    except SystemExit as stop:  # Lightning exits with 1 on Ctrl-C and with 0 on SIGTERM
        say(f"\nInterrupted: {run.way_on}")
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, SIGTERMException) else signal.SIGINT))
    except Exception as error:
        if (full := disk_full(error)) is not None:
            raise UserError(f"{full}: free some, then {run.way_on}") from error
        raise


def describe(trainer: L.Trainer, cfg: DictConfig) -> None:
    """Log the hyperparameters to every logger, and the config to TensorBoard."""
    shown = hyperparameters(cfg)
    for logger in trainer.loggers:
        if isinstance(logger, Scalars):
            logger.log_hyperparams(shown)
            logger.log_text("config", f"```yaml\n{OmegaConf.to_yaml(cfg)}\n```")
        else:  # MLflow refuses names with @, such as likelihood@model.likelihood
            logger.log_hyperparams({name.replace("@", ":"): value for name, value in shown.items()})


def fit(trainer: L.Trainer, model: BaseVAE, datamodule: ImageDataModule, start: Start) -> bool:
    """Train and return whether a step was taken; a resumed run may have been complete.

    Raises:
        UserError: a new run took no step, or the state in the checkpoint cannot be restored.
    """
    try:
        trainer.fit(model, datamodule, ckpt_path=start.resume, weights_only=True)
    except Exception as error:
        if isinstance(error, UserError | OSError) or memory_full(error) or not restoring(error):
            raise
        raise UserError(
            f"cannot take up the state in {start.resume} ({type(error).__name__}: {one_line(error)}): it is "
            "damaged, from elsewhere, or of other settings"
        ) from error
    if start.resume is not None:
        return trainer.global_step > start.steps
    if trainer.global_step == 0:
        raise UserError(
            f"not one step was taken: there are {trainer.num_training_batches} batches an epoch, trainer.max_epochs is "
            f"{trainer.max_epochs}; look at trainer.limit_train_batches and at what else ends a training"
        )
    return True


def test(run: RunFolder, trainer: L.Trainer, model: BaseVAE, datamodule: ImageDataModule) -> dict[str, float]:
    """Return the metrics of the test split under the best weights, or the last ones if no best were kept."""
    # Load only the weights: trainer.test(ckpt_path=...) would also reset the callbacks to the best epoch.
    if run.best.exists():
        model.load_state_dict(read_weights(run.best, model))
    return tested(trainer, model, datamodule)


def tested(trainer: L.Trainer, model: BaseVAE, datamodule: ImageDataModule) -> dict[str, float | int]:
    """Return exact means over the split ``datamodule.tested``: elbo, distortion, rate, loss (nats per image), bits/dim.

    They come from one posterior sample an image. Where images have codes, the number of active latents (Burda et al.
    2016) is added.
    """
    trainer.test(model, datamodule, verbose=False)
    metrics = trainer.callback_metrics.items()
    means = {name.removeprefix("test/"): float(value) for name, value in metrics if name.startswith("test/")}
    if "active_latents" in means:
        means["active_latents"] = int(means["active_latents"])
    return means
