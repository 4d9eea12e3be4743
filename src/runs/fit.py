"""Training itself, from new weights or from a checkpoint; the test of the weights that it has chosen; the record."""

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
    """Train, test and record; where something stops that, say how to go on.

    Raises:
        UserError: it cannot be trained, or the disk is full.
        SystemExit: a signal has stopped it; with the status that shells have for that signal.
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
    except SystemExit as stop:  # Lightning ends with 1 on Ctrl-C and with 0 on SIGTERM
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
    """Train; whether there was anything left to do, which a resumed run may have done before.

    Raises:
        UserError: a new run has not taken a single step, or the checkpoint cannot be gone on from.
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
    """Figures of the test split under the best weights; under the last ones where no best were kept."""
    # Only the weights: trainer.test(ckpt_path=...) would also set the callbacks back to the best epoch.
    if run.best.exists():
        model.load_state_dict(read_weights(run.best, model))
    return tested(trainer, model, datamodule)


def tested(trainer: L.Trainer, model: BaseVAE, datamodule: ImageDataModule) -> dict[str, float | int]:
    """Exact means over the test split (or over ``datamodule.tested``): elbo, distortion, rate, loss, bits/dim.

    And how many latents are active (Burda et al. 2016).

    One posterior sample an image, in nats per image. What training ends with, and the evaluation's first part.
    """
    trainer.test(model, datamodule, verbose=False)
    metrics = trainer.callback_metrics.items()
    means = {name.removeprefix("test/"): float(value) for name, value in metrics if name.startswith("test/")}
    return {**means, "active_latents": int(means["active_latents"])}
