"""Describe the run folder and keep two runs from sharing one.

``.hydra/`` (config, overrides), ``checkpoints/`` (best.ckpt, last.ckpt), ``metrics.json``, ``figures/``,
``tensorboard/`` and the log. A run folder is self-contained: nothing else is needed to use the run.
"""

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from src.data.base import ImageDataModule
from src.runs.checkpoints import fingerprint_in, first_readable, hash_of, read_checkpoint
from src.runs.frozen import other_setting
from src.runs.metrics_file import readable_record, write_record
from src.runs.trust import read_saved_config, resolved
from src.system.contents import BEFORE, METRICS
from src.system.errors import UserError
from src.system.files import as_typed, remove_unfinished, whole_file
from src.system.kinds import spelled

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """Say where a training begins: from new weights if there is neither ``resume`` nor ``weights``."""

    resume: Path | None = None  # checkpoint to resume with all its state
    weights: Path | None = None  # checkpoint of which only the weights are used
    checkpoint: dict[str, Any] | None = None  # its content; the mapped file keeps its disk space until this is dropped
    steps: int = 0  # optimizer steps taken before


class RunFolder:
    """Hold the paths of a run, and protect its files."""

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
        """Return where training begins, after checking that the folder is free for this run.

        Only the first process of a run checks: it has claimed the folder when the others start.

        Raises:
            UserError: the folder holds another run, there is nothing to resume, or the run to resume was trained with
                other settings.
        """
        named = None if cfg.ckpt_path in (None, "last") else Path(cfg.ckpt_path)
        resumes = self.resumed_by(cfg)
        kept = [path for path in (self.last, self.best) if path.is_file()]  # a killed run may have one only
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
        path, checkpoint, errors = first_readable(kept)
        if path != self.last:
            why = errors[0] if errors else f"there is no {self.last}"
            rank_zero_only(log.warning)("%s; going on from %s", why, path)
        return Start(resume=path, checkpoint=checkpoint, steps=int(checkpoint.get("global_step") or 0))

    def resumed_by(self, cfg: DictConfig) -> bool:
        """Return whether ``ckpt_path`` resumes this run: ``last``, or the path of its last checkpoint."""
        path = cfg.ckpt_path
        return path == "last" or (path is not None and Path(path).resolve() == self.last.resolve())

    @rank_zero_only
    def claim(self, cfg: DictConfig) -> None:
        """Write the config, which makes the folder this run's.

        The config of a resumed run still names the weights that it began with.
        """
        hydra = HydraConfig.get()
        if self.resumed_by(cfg) and self.config.exists():
            cfg.ckpt_path = read_saved_config(self.config).get("ckpt_path")
        self.config.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.config.parent, self.last.parent, self.figures):
            remove_unfinished(folder)
        for name, part in (("config", cfg), ("overrides", hydra.overrides.task), ("hydra", {"hydra": hydra})):
            with whole_file(self.config.with_name(f"{name}.yaml")) as file:
                OmegaConf.save(OmegaConf.create(part) if isinstance(part, dict) else part, file)

    def check_images(self, start: Start, datamodule: ImageDataModule) -> None:
        """Check that the run to resume was trained on these images and splits.

        A new run that begins with weights of other images only gets a note.

        Raises:
            UserError: the images or splits differ: training images may be test images now.
        """
        if start.checkpoint is None:
            return
        trained_on = fingerprint_in(start.checkpoint, datamodule)
        if start.resume is None:
            if trained_on not in (None, datamodule.fingerprint):
                datamodule.splits.notes.append(
                    f"the weights of {start.weights} were trained on other images or splits than these: they may know "
                    "what they are tested on"
                )
            return
        for record in (self.metrics, self.before):  # checkpoints of earlier versions have no fingerprint
            trained_on = trained_on or readable_record(record).get("data", {}).get("fingerprint")
        if trained_on == datamodule.fingerprint or (trained_on is None and datamodule.as_published):
            return
        was = f"then {str(trained_on)[:8]}" if trained_on else "not recorded by the version that trained it"
        raise UserError(
            f"the images of {datamodule.name} or their splits are not those that {start.resume} was trained on "
            f"(fingerprint {datamodule.fingerprint[:8]}, {was}): bring those back, or begin a new run with another "
            f"hydra.run.dir; with ckpt_path={start.resume} it begins with these weights, which may know its test images"
        )

    def _refuse_other_settings(self, cfg: DictConfig) -> None:
        if not self.config.exists():
            raise UserError(f"{self.config} is missing: {self.path} is no complete run folder and cannot be resumed")
        saved = dict(flatten(resolved(read_saved_config(self.config), self.config)))
        given = dict(flatten(OmegaConf.to_container(cfg, resolve=True)))
        if (key := other_setting(saved, given)) is not None:
            typed = key in saved and key in given and not key.endswith("_target_")  # a class is chosen by its group
            raise UserError(
                f"{self.path} was trained with {key}={saved.get(key)}, this resume says {given.get(key)}: repeat its "
                f"overrides ({self.path}/.hydra/overrides.yaml)"
                + (f" or add {key}={spelled(saved[key])}" if typed else "")
                + ", or start a new run"
            )

    def write_record(self, record: dict[str, Any]) -> None:
        """Write the result of a training to ``metrics.json``, with the hashes of its checkpoints."""
        write_record(self.path, record, {path.name: hash_of(path) for path in (self.best, self.last) if path.is_file()})

    @property
    def way_on(self) -> str:
        """Say what to do after an interruption."""
        if self.last.exists() or self.best.exists():
            return f"go on with the same overrides, {as_typed('hydra.run.dir', self.path)} and ckpt_path=last"
        return f"no epoch was complete: delete {self.path} and start again"


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values of nested mappings; lists stay whole."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def git_commit() -> str | None:
    """Return the commit of the code, with ``+changes`` if the working tree differs; None outside a repository."""

    def git(*words: str) -> str:
        call = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return call.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
