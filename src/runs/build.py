"""Build the data, the model and the trainer of a config, and fill in what it leaves open."""

import logging
import os
from functools import partial

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from src.data.base import ImageDataModule
from src.data.pixels import Pixels
from src.models.base import NO_CODES, NO_ELBO, BaseVAE
from src.runs.checkpoints import WholeCheckpoints
from src.runs.folder import RunFolder, flatten
from src.runs.metrics_file import put_aside
from src.runs.trust import saved_value
from src.system.directions import BOUNDS
from src.system.errors import UserError, one_line
from src.system.files import readable
from src.system.machine import check_precision, check_processes, multiplies_bfloat16
from src.training.acceleration import NoProfiler, lay_out, on_apples_gpu, on_gpu
from src.training.compilation import check_compiler
from src.training.dashboard import Scalars
from src.training.epoch_means import EpochMeans
from src.training.recipe import Recipe
from src.training.resume import StepLimit

log = logging.getLogger(__name__)
# Config groups that can be swept.
CHOICES = (
    "experiment",
    "model",
    "loss",
    "data",
    "posterior@model.posterior",
    "prior@model.prior",
    "likelihood@model.likelihood",
    "optimizer",
    "schedule",
    "trainer",
)


def hyperparameters(cfg: DictConfig) -> dict[str, str | int | float | bool]:
    """Return flat names and values for the loggers: the main settings, and all that the command line sets.

    Class names, paths and most data keys are shown only if the command line, which may be a sweep's, sets them:
    TensorBoard sorts columns by name and would put all data keys before the model.
    """
    tree = OmegaConf.to_container(cfg, resolve=True)
    tree["trainer"] = {key: tree["trainer"].get(key) for key in ("max_epochs", "precision", "gradient_clip_val")}
    tree["data"] = {key: tree["data"].get(key) for key in ("batch_size", "image_size")}
    hydra = HydraConfig.get()
    typed = [override.partition("=")[0].lstrip("+") for override in hydra.overrides.task]
    names = {key: str(choice) for key, choice in hydra.runtime.choices.items() if key in (*CHOICES, *typed)}
    shaping = {key: tree[key] for key in ("model", "data", "optimizer", "schedule", "trainer", "seed") if key in tree}
    shown = {key: value for key, value in flatten(shaping) if not key.endswith(("_target_", "_partial_"))}
    everything = dict(flatten(OmegaConf.to_container(cfg, resolve=True)))
    shown |= {key: everything[key] for key in typed if key in everything and key not in ("run_dir", "ckpt_path")}
    shown["tags"] = ", ".join(map(str, cfg.tags))
    numbers = int | float | bool
    return names | {key: v if isinstance(v, numbers) else readable(str(v)) for key, v in shown.items()}


def build_datamodule(cfg: DictConfig) -> ImageDataModule:
    """Build the data module of a config; ``data.dequantize=auto`` is filled in."""
    fill_dequantize(cfg)
    return instantiate(cfg.data, _convert_="all")


def build_model(cfg: DictConfig, datamodule: ImageDataModule) -> BaseVAE:
    """Build the model of a config for the images of ``datamodule``."""
    model = instantiate(
        cfg.model,
        image_shape=list(datamodule.image_shape),
        images=datamodule.train_images,
        recipe=Recipe(
            optimizer=instantiate(cfg.optimizer, _convert_="all"),
            schedule=instantiate(cfg.schedule, _convert_="all") if cfg.get("schedule") else None,
        ),
        _convert_="all",
    )
    return lay_out(model, cfg.trainer.precision, on_gpu(cfg))


def check_metrics(cfg: DictConfig, model: BaseVAE, datamodule: ImageDataModule) -> None:
    """Check that the metrics that a run is compared, kept or stopped by exist for this model and these pixels.

    Raises:
        UserError: one of them does not.
    """
    missing = {f"val/{name}": "the loss of this model is not that bound" for name in BOUNDS if name != model.loss.bound}
    del missing["val/elbo"]
    if not model.has_elbo:
        missing |= dict.fromkeys(("val/elbo", "val/rate", "val/bits_per_dim"), NO_ELBO)
    elif model.likelihood.bits_per_dim(0.0, 1, datamodule.pixels) is None:
        likelihood = model.likelihood
        what = f"is one of {likelihood.supports} pixels, and these are {datamodule.pixels}"
        missing["val/bits_per_dim"] = (
            f"the likelihood {likelihood.name} {what if likelihood.supports else 'is one of no pixels'}, so there are "
            "no bits per dimension"
        )
    if not model.has_codes:
        missing["val/active_latents"] = NO_CODES
    for key, value in flatten(OmegaConf.to_container(cfg, resolve=True)):
        if isinstance(value, str) and value in missing and key.endswith(("compare_by", "monitor")):
            other = "val/elbo" if model.has_elbo else "val/loss"
            raise UserError(f"{key}={value}: {missing[value]}: choose {other}")


def build_trainer(cfg: DictConfig) -> L.Trainer:
    """Build the trainer of a config, with its callbacks and loggers.

    Raises:
        UserError: the trainer would use Apple's GPU, which lacks the float64 that means over a split need, or more
            processes than there are processors.
    """
    if on_apples_gpu(cfg):
        raise UserError(
            f"trainer.accelerator={cfg.trainer.accelerator} is Apple's GPU here (MPS), which has no float64: choose "
            "trainer=cpu"
        )
    callbacks = instantiate(cfg.get("callbacks") or {}, _convert_="all")
    callbacks = {name: callback for name, callback in callbacks.items() if callback is not None}  # null disables one
    steps = cfg.trainer.get("max_steps", -1)
    if isinstance(steps, int) and steps >= 0:
        callbacks["step_limit"], steps = StepLimit(steps), -1
    profiler = cfg.trainer.get("profiler")
    if not on_gpu(cfg):
        check_processes(cfg.trainer.devices)
    trainer: L.Trainer = instantiate(
        cfg.trainer,
        max_steps=steps,
        profiler=NoProfiler() if profiler is None else profiler,
        callbacks=[EpochMeans(), *callbacks.values()],  # first: the others read the means
        logger=[logger for logger in instantiate(cfg.get("logger") or {}, _convert_="all").values() if logger],
        default_root_dir=cfg.run_dir,
        _convert_="all",
    )
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # keep one from the user or the strategy
        trainer.strategy.checkpoint_io = WholeCheckpoints(partial(put_aside, RunFolder(cfg.run_dir).path))
    return trainer


def begin_logging(trainer: L.Trainer) -> None:
    """Connect the loggers that need an account or a server, before the run's folder is taken.

    Raises:
        UserError: a logger cannot be used.
    """
    for logger in trainer.loggers:
        if isinstance(logger, Scalars | CSVLogger):
            continue
        try:
            _ = logger.experiment
        except Exception as error:  # whatever the package of the logger raises
            hint = "; logger.wandb.offline=true needs no account" if isinstance(logger, WandbLogger) else ""
            raise UserError(f"{type(logger).__name__} cannot begin: {one_line(error).rstrip('.')}{hint}") from error


def fill_seed(cfg: DictConfig, run: RunFolder) -> None:
    """Draw a seed if the config has none (0 is a seed), so that it is recorded.

    A resume and the processes that Lightning starts take the seed that was drawn before.
    """
    if cfg.seed is not None:
        return
    if run.resumed_by(cfg) and run.config.exists():
        cfg.seed = saved_value(run.config, "seed")
    elif "LOCAL_RANK" in os.environ:
        cfg.seed = int(os.environ["PL_GLOBAL_SEED"])
    else:
        cfg.seed = int.from_bytes(os.urandom(4), "big") >> 1


def fill_compile(cfg: DictConfig, run: RunFolder) -> None:
    """Check ``compile``; a resume with ``auto`` takes the choice that the run began with, and says so.

    Raises:
        UserError: the choice is unknown, or there is no compiler.
    """
    if cfg.compile == "auto" and run.resumed_by(cfg) and run.config.exists():
        cfg.compile = saved_value(run.config, "compile")
        rank_zero_only(log.info)("compile=auto: %s, as this run began", "compiled" if cfg.compile else "eager")
    check_compiler(cfg)


def fill_dequantize(cfg: DictConfig) -> None:
    """Replace ``data.dequantize=auto``: true for grey pixels under a likelihood that is a density, else false."""
    if cfg.data.get("dequantize") != "auto":
        return
    cfg.data.dequantize = False
    density = instantiate(cfg.model.likelihood, _convert_="all").supports is Pixels.DEQUANTIZED
    cfg.data.dequantize = density and build_datamodule(cfg).levels is Pixels.GREY


def fill_precision(cfg: DictConfig, run: RunFolder | None = None) -> None:
    """Replace ``trainer.precision=auto``: bf16-mixed if the device multiplies bfloat16, else 32-true.

    A resume takes the precision that the run began with.

    Raises:
        UserError: float16 on a CPU, where Lightning would use bfloat16 instead.
    """
    cpu = cfg.trainer.accelerator == "cpu" or (cfg.trainer.accelerator == "auto" and not on_gpu(cfg))
    if cpu:
        check_precision(cfg.trainer.precision)
    if cfg.trainer.precision != "auto":
        return
    if run is not None and run.resumed_by(cfg) and run.config.exists():
        cfg.trainer.precision = saved_value(run.config, "trainer.precision")
    elif on_gpu(cfg):
        cfg.trainer.precision = "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    else:
        cfg.trainer.precision = "bf16-mixed" if multiplies_bfloat16() else "32-true"
