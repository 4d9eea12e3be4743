"""The run folder: what a run leaves behind, and what keeps two runs apart.

``.hydra/`` (config, overrides), ``checkpoints/`` (best.ckpt, last.ckpt), ``metrics.json``, ``figures/``,
``tensorboard/`` and the log. It is the unit of reload: nothing else is needed to use a run.
"""

import logging
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from src.data.base import ImageDataModule
from src.models.base import BaseVAE
from src.runs.checkpoints import WholeCheckpoints, fingerprint_in, first_readable, hash_of, read_checkpoint
from src.runs.frozen import other_setting
from src.runs.metrics_file import put_aside, readable_record, write_record
from src.runs.trust import read_saved_config, resolved, saved_value
from src.sweeps.status import PLAN
from src.system.contents import BEFORE, METRICS
from src.system.errors import UserError
from src.system.files import as_typed, readable, remove_unfinished, whole_file
from src.system.kinds import spelled
from src.system.machine import check_processes
from src.training.acceleration import NoProfiler, lay_out, on_apples_gpu, on_gpu
from src.training.dashboard import Dashboard
from src.training.resume import StepLimit

log = logging.getLogger(__name__)

# Config groups that a sweep may choose from.
CHOICES = ("experiment", "model", "data", "likelihood@model.likelihood", "optimizer", "schedule", "trainer")
# Keys of the data that name places, not properties of the images.
ELSEWHERE = ("root", "cache_dir", "where_to_get", "dataset", "download", "checksum", "published", "name")


class Start(NamedTuple):
    """Where a training begins; with neither, at new weights."""

    resume: Path | None = None  # the checkpoint that it goes on from, with all its state
    weights: Path | None = None  # the checkpoint whose weights it begins with, and nothing else of it
    checkpoint: dict[str, Any] | None = None  # what that file holds; mapped, so not to be kept for long
    steps: int = 0  # optimizer steps that were taken before


class RunFolder:
    """Paths of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.relpath(path))
        self.config = self.path / ".hydra" / "config.yaml"
        self.last = self.path / "checkpoints" / "last.ckpt"
        self.best = self.path / "checkpoints" / "best.ckpt"
        self.metrics = self.path / METRICS
        self.before = self.path / BEFORE
        self.figures = self.path / "figures"
        self.tensorboard = self.path / "tensorboard"

    def start(self, cfg: DictConfig) -> Start:
        """Where training begins, once it is seen that the folder is free for this run.

        Of several processes of one run only the first looks: the others come when it has claimed the folder.

        Raises:
            UserError: another run is in it and this is no resume of it; or there is nothing to resume; or what would be
                resumed was trained with other settings.
        """
        named = None if cfg.ckpt_path in (None, "last") else Path(cfg.ckpt_path)
        resumes = cfg.ckpt_path == "last" or (named is not None and named.resolve() == self.last.resolve())
        kept = [path for path in (self.last, self.best) if path.is_file()]  # killed in between, it has one alone
        if resumes and not kept:
            raise UserError(
                f"there is no checkpoint {self.last}: hydra.run.dir must name the folder of the run to resume"
            )
        if named is not None and not named.is_file():
            raise UserError(f"there is no checkpoint {named}: check ckpt_path")
        if resumes and rank_zero_only.rank == 0:
            self._refuse_other_settings(cfg)
        elif self.config.exists() and rank_zero_only.rank == 0:
            way = "resume it with ckpt_path=last" if kept else "delete it (no epoch of it was completed)"
            raise UserError(f"{self.path} already holds a run: {way}, or choose another hydra.run.dir")
        if not resumes:
            return Start(weights=named, checkpoint=named and read_checkpoint(named))
        path, checkpoint, refusals = first_readable(kept)
        if path != self.last:
            why = refusals[0] if refusals else f"there is no {self.last}"
            rank_zero_only(log.warning)("%s; going on from %s", why, path)
        return Start(resume=path, checkpoint=checkpoint, steps=int(checkpoint.get("global_step") or 0))

    @rank_zero_only
    def claim(self, cfg: DictConfig) -> None:
        """Record the config: from now on the folder is this run's.

        That of a resumed run keeps saying which weights it began with.
        """
        hydra = HydraConfig.get()
        if cfg.ckpt_path == "last" and self.config.exists():
            cfg.ckpt_path = read_saved_config(self.config).get("ckpt_path")
        self.config.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.config.parent, self.last.parent, self.figures):
            remove_unfinished(folder)
        for name, part in (("config", cfg), ("overrides", hydra.overrides.task), ("hydra", {"hydra": hydra})):
            with whole_file(self.config.with_name(f"{name}.yaml")) as file:
                OmegaConf.save(OmegaConf.create(part) if isinstance(part, dict) else part, file)

    def check_images(self, start: Start, datamodule: ImageDataModule) -> None:
        """See that what is to be resumed was trained on these images, split as they are now.

        Of weights that a new run begins with that is said, not asked for: there they are the test's business.

        Raises:
            UserError: they are others: images that it has trained on may be ones to test on now.
        """
        if start.checkpoint is None:
            return
        then = fingerprint_in(start.checkpoint, datamodule)
        if start.resume is None:
            if then not in (None, datamodule.fingerprint):
                datamodule.splits.notes.append(
                    f"the weights of {start.weights} were trained on other images or splits than these: they may know "
                    "what they are tested on"
                )
            return
        for record in (self.metrics, self.before):  # of versions whose checkpoints do not say
            then = then or readable_record(record).get("data", {}).get("fingerprint")
        if then == datamodule.fingerprint or (then is None and datamodule.as_published):
            return
        was = f"then {str(then)[:8]}" if then else "not recorded by the version that trained it"
        raise UserError(
            f"the images of {datamodule.name} or their splits are not those that {start.resume} was trained on "
            f"(fingerprint {datamodule.fingerprint[:8]}, {was}): bring those back, or begin a new run with another "
            f"hydra.run.dir; with ckpt_path={start.resume} it begins with these weights, which may know its test images"
        )

    def _refuse_other_settings(self, cfg: DictConfig) -> None:
        if not self.config.exists():
            raise UserError(f"{self.config} is missing: {self.path} is no complete run folder and cannot be resumed")
        saved = read_saved_config(self.config)
        then, now = (
            dict(flatten(c)) for c in (resolved(saved, self.config), OmegaConf.to_container(cfg, resolve=True))
        )
        if (key := other_setting(then, now)) is not None:
            raise UserError(
                f"{self.path} was trained with {key}={then.get(key)}, this resume says {now.get(key)}: repeat its "
                f"overrides ({self.path}/.hydra/overrides.yaml)"
                + (f" or add {key}={spelled(then[key])}" if key in then and key in now else "")
                + ", or start a new run"
            )

    def write_record(self, record: dict[str, Any]) -> None:
        """Write what a training has ended with into ``metrics.json``, with the hashes of its checkpoints."""
        write_record(self.path, record, {path.name: hash_of(path) for path in (self.best, self.last) if path.is_file()})

    @property
    def way_on(self) -> str:
        """What to do after an interruption."""
        if self.last.exists() or self.best.exists():
            return f"go on with the same overrides, hydra.run.dir={as_typed(self.path)} and ckpt_path=last"
        return f"no epoch was complete: delete {self.path} and start again"


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings; lists stay whole."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def hyperparameters(cfg: DictConfig) -> dict[str, str | int | float | bool]:
    """Flat names and values for TensorBoard's HParams tab: what shapes a run, and what its command line sets.

    The latter is what a sweep varies, whatever it is. Class names and paths are only shown where they were typed.
    """
    tree = OmegaConf.to_container(cfg, resolve=True)
    tree["trainer"] = {key: tree["trainer"].get(key) for key in ("max_epochs", "precision", "gradient_clip_val")}
    tree["data"] = {key: value for key, value in tree["data"].items() if key not in ELSEWHERE}
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
    """The data set that a config describes."""
    return instantiate(cfg.data, _convert_="all")


def build_model(cfg: DictConfig, datamodule: ImageDataModule) -> BaseVAE:
    """The model that a config describes, for the images of ``datamodule``."""
    model = instantiate(
        cfg.model,
        image_shape=list(datamodule.image_shape),
        optimizer=instantiate(cfg.optimizer, _convert_="all"),
        schedule=instantiate(cfg.schedule, _convert_="all") if cfg.get("schedule") else None,
        _convert_="all",
    )
    return lay_out(model, cfg.trainer.precision, on_gpu(cfg))


def check_metrics(cfg: DictConfig, model: BaseVAE, datamodule: ImageDataModule) -> None:
    """See that what a run is compared, kept or stopped by is computed for these pixels under this likelihood.

    Raises:
        UserError: it asks for bits per dimension where the likelihood is none of the data.
    """
    if model.likelihood.bits_per_dim(0.0, 1, datamodule.pixels) is not None:
        return
    for key, value in flatten(OmegaConf.to_container(cfg, resolve=True)):
        if value == "val/bits_per_dim" and key.endswith(("compare_by", "monitor")):
            raise UserError(
                f"{key}={value}: a likelihood of {model.likelihood.supports} pixels is none of these "
                f"{datamodule.pixels} ones, so there are no bits per dimension: choose val/elbo"
            )


def build_trainer(cfg: DictConfig) -> L.Trainer:
    """The trainer that a config describes, with its callbacks and loggers.

    Raises:
        UserError: it would train on Apple's GPU, which does not compute in float64, as means over a split need; or
            in more processes than there are processors.
    """
    if on_apples_gpu(cfg):
        raise UserError(
            f"trainer.accelerator={cfg.trainer.accelerator} is Apple's GPU here (MPS), which has no float64: choose "
            "trainer=cpu"
        )
    made = instantiate(cfg.get("callbacks") or {}, _convert_="all")
    callbacks = {name: callback for name, callback in made.items() if callback is not None}  # null leaves one out
    for dashboard in (c for c in callbacks.values() if isinstance(c, Dashboard)):
        dashboard.config = OmegaConf.to_yaml(cfg)
        dashboard.hyperparameters = hyperparameters(cfg)
        dashboard.in_a_sweep = (Path(cfg.run_dir).parent / PLAN).exists()
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
        callbacks=list(callbacks.values()),
        logger=[made for made in instantiate(cfg.get("logger") or {}, _convert_="all").values() if made is not None],
        default_root_dir=cfg.run_dir,
        _convert_="all",
    )
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not one that the user or a strategy brought
        trainer.strategy.checkpoint_io = WholeCheckpoints(partial(put_aside, RunFolder(cfg.run_dir).path))
    return trainer


def fill_seed(cfg: DictConfig, run: RunFolder) -> None:
    """Draw a seed where the config leaves it open, so that the record names it. 0 is a seed.

    A resume takes the seed that was drawn, and so do the processes that Lightning starts for this one.
    """
    if cfg.seed is not None:
        return
    if cfg.ckpt_path == "last" and run.config.exists():
        cfg.seed = saved_value(run.config, "seed")
    elif "LOCAL_RANK" in os.environ:
        cfg.seed = int(os.environ["PL_GLOBAL_SEED"])
    else:
        cfg.seed = int.from_bytes(os.urandom(4), "big") >> 1


def git_commit() -> str | None:
    """Commit of the code, marked ``+changes`` where the working tree differs; None outside a repository."""

    def git(*words: str) -> str:
        call = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return call.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
