"""The run folder: what a run leaves behind, and what keeps two runs apart.

``.hydra/`` (config, overrides), ``checkpoints/`` (best.ckpt, last.ckpt), ``metrics.json``, ``figures/``,
``tensorboard/`` and the log. It is the unit of reload: nothing else is needed to use a run.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from src.acceleration import NoProfiler, lay_out, on_gpu
from src.callbacks.resume import StepLimit
from src.callbacks.show import Dashboard
from src.data.base import ImageDataModule
from src.errors import UserError
from src.files import readable, whole_file
from src.models.base import BaseVAE
from src.resuming import other_setting

# Config groups that a sweep may choose from.
CHOICES = ("experiment", "model", "data", "likelihood@model.likelihood", "optimizer", "schedule", "trainer")
# Keys of the data that name places, not properties of the images.
ELSEWHERE = ("root", "cache_dir", "where_to_get", "dataset", "download", "name")


class RunFolder:
    """Paths of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.relpath(path))
        self.config = self.path / ".hydra" / "config.yaml"
        self.last = self.path / "checkpoints" / "last.ckpt"
        self.best = self.path / "checkpoints" / "best.ckpt"
        self.metrics = self.path / "metrics.json"
        self.figures = self.path / "figures"
        self.tensorboard = self.path / "tensorboard"

    def start(self, cfg: DictConfig) -> Path | None:
        """The checkpoint to start from, None for a fresh start, once it is seen that the folder is free for this run.

        Of several processes of one run only the first looks: the others come when it has claimed the folder.

        Raises:
            UserError: another run is in it and this is no resume of it; or there is nothing to resume; or what would be
                resumed was trained with other settings.
        """
        start = self._checkpoint_to_start_from(cfg.ckpt_path)
        if rank_zero_only.rank != 0:
            return start
        if start is not None and start.resolve() == self.last.resolve():
            self._refuse_other_settings(cfg)
        elif self.config.exists():
            way = "resume it with ckpt_path=last" if self.last.exists() else "delete it (no epoch of it was completed)"
            raise UserError(f"{self.path} already holds a run: {way}, or choose another hydra.run.dir")
        return start

    @rank_zero_only
    def claim(self, cfg: DictConfig) -> None:
        """Record the config: from now on the folder is this run's."""
        hydra = HydraConfig.get()
        self.config.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, self.config)
        OmegaConf.save(hydra.overrides.task, self.config.with_name("overrides.yaml"))
        OmegaConf.save(OmegaConf.create({"hydra": hydra}), self.config.with_name("hydra.yaml"))

    def _checkpoint_to_start_from(self, ckpt_path: str | None) -> Path | None:
        if ckpt_path is None:
            return None
        path = self.last if ckpt_path == "last" else Path(ckpt_path)
        if not path.is_file():
            hint = (
                "hydra.run.dir must name the folder of the run to resume" if ckpt_path == "last" else "check ckpt_path"
            )
            raise UserError(f"there is no checkpoint {path}: {hint}")
        return path

    def _refuse_other_settings(self, cfg: DictConfig) -> None:
        if not self.config.exists():
            raise UserError(f"{self.config} is missing: {self.path} is no complete run folder and cannot be resumed")
        then, now = (dict(flatten(OmegaConf.to_container(c, resolve=True))) for c in (OmegaConf.load(self.config), cfg))
        if (key := other_setting(then, now)) is not None:
            raise UserError(
                f"{self.path} was trained with {key}={then.get(key)}, this resume says {now.get(key)}: repeat its "
                f"overrides ({self.path}/.hydra/overrides.yaml), or start a new run"
            )

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write ``metrics.json``: whole, or not at all."""
        with whole_file(self.metrics) as file:
            file.write_text(json.dumps(metrics, indent=2) + "\n")


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


def build_trainer(cfg: DictConfig) -> L.Trainer:
    """The trainer that a config describes, with its callbacks and loggers."""
    made = instantiate(cfg.get("callbacks") or {}, _convert_="all")
    callbacks = {name: callback for name, callback in made.items() if callback is not None}  # null leaves one out
    for dashboard in (c for c in callbacks.values() if isinstance(c, Dashboard)):
        dashboard.config = OmegaConf.to_yaml(cfg)
        dashboard.hyperparameters = hyperparameters(cfg)
    steps = cfg.trainer.get("max_steps", -1)
    if isinstance(steps, int) and steps >= 0:
        callbacks["step_limit"], steps = StepLimit(steps), -1
    profiler = cfg.trainer.get("profiler")
    return instantiate(
        cfg.trainer,
        max_steps=steps,
        profiler=NoProfiler() if profiler is None else profiler,
        callbacks=list(callbacks.values()),
        logger=[made for made in instantiate(cfg.get("logger") or {}, _convert_="all").values() if made is not None],
        default_root_dir=cfg.run_dir,
        _convert_="all",
    )


def fill_seed(cfg: DictConfig, run: RunFolder) -> None:
    """Draw a seed where the config leaves it open, so that the record names it. 0 is a seed.

    A resume takes the seed that was drawn, and so do the processes that Lightning starts for this one.
    """
    if cfg.seed is not None:
        return
    if cfg.ckpt_path == "last" and run.config.exists():
        cfg.seed = OmegaConf.load(run.config).seed
    elif "LOCAL_RANK" in os.environ:
        cfg.seed = int(os.environ["PL_GLOBAL_SEED"])
    else:
        cfg.seed = int.from_bytes(os.urandom(4), "big") >> 1


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, read without unpickling code.

    Raises:
        UserError: it is damaged, or holds more than tensors and plain values.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for name, weights in checkpoint["state_dict"].items():
            if not isinstance(name, str) or not isinstance(weights, torch.Tensor) or weights.layout != torch.strided:
                raise TypeError("its state_dict holds more than named arrays")
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, zip errors
        reason = str(error).split("\n")[0]
        raise UserError(f"cannot read the checkpoint {path} ({reason}): it is damaged or from elsewhere") from error
    return checkpoint


def read_weights(
    path: Path, model: BaseVAE, advice: str = "Use the overrides that the run was trained with"
) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, once they are seen to fit the model.

    Raises:
        UserError: it is damaged, or its weights are another model's; the message ends with ``advice``.
    """
    weights = read_checkpoint(path)["state_dict"]
    ours = model.state_dict()
    for name in sorted(weights.keys() | ours.keys()):
        then, now = (f"{list(w[name].shape)} {w[name].dtype}" if name in w else "absent" for w in (weights, ours))
        if then != now:
            raise UserError(
                f"the checkpoint {path} does not fit this model: {name} is {then} in the file and {now} here. {advice}"
            )
    return weights


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
