"""A run read back: its config, its data, its model, from the run folder alone and without trusting it.

A run folder may come from elsewhere. Checkpoints are read with ``weights_only=True``; of the config only ``data`` and
``model`` are built, and what they name must be modules and data sets of our own and the agreed packages.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class
from lightning import LightningDataModule
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torch.utils.data import Dataset
from yaml import YAMLError

from src.data.base import ImageDataModule
from src.errors import UserError
from src.models.base import BaseVAE
from src.runs import RunFolder, build_datamodule, build_model, read_checkpoint, read_weights
from src.subject import Subject

PACKAGES = ("src", "torch", "torchvision", "lightning", "torchmetrics")
BUILT = ("data", "model")  # the parts of a config that are built here
BUILDABLE = (nn.Module, LightningDataModule, Dataset)
GET_CLASS = "hydra.utils.get_class"  # how conf/data/mnist.yaml names a data set class without building it


class LoadedRun(NamedTuple):
    """A run folder's content, ready for use."""

    folder: RunFolder
    cfg: DictConfig
    datamodule: ImageDataModule
    model: BaseVAE  # in eval mode, on the CPU
    checkpoint: Path
    checkpoint_hash: str  # first 16 hex digits of the file's SHA-256
    epochs: list[dict[str, float]]  # metrics of every epoch; see History
    record: dict[str, Any]  # metrics.json, empty where training did not finish


def load_run(
    path: str | Path, checkpoint: str = "best", data: Mapping[str, Any] | None = None, other_data: bool = False
) -> LoadedRun:
    """Read a run folder.

    Args:
        path: the folder.
        checkpoint: ``best`` or ``last``.
        data: keys of ``data`` that differ here, such as ``root``; None leaves one as it was.
        other_data: go on where the images or splits are not those that the run was trained on.

    Raises:
        UserError: the folder is incomplete, foreign, of another version of the code, or its data are not here.
    """
    folder = RunFolder(path)
    file = _checkpoint_file(folder, checkpoint)
    cfg = _read_config(folder, data or {})
    record = _read_record(folder)
    commit = record.get("git_commit")
    advice = f"{folder.path} was written by another version of the code" + (f": commit {commit}" if commit else "")
    try:
        datamodule = build_datamodule(cfg)
        model = build_model(OmegaConf.merge(cfg, NO_TRAINING), datamodule)
    except (InstantiationException, OmegaConfBaseException, AttributeError, TypeError) as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        if isinstance(root, UserError):
            raise root from error
        raise UserError(f"the config of {folder.path} does not fit this code ({_one_line(root)}). {advice}") from error
    weights = read_weights(file, model, f"Its config is not the one it was trained with, or {advice}")
    if broken := [name for name, w in weights.items() if not w.isfinite().all()]:
        raise UserError(f"the weights {broken[0]} in {file} are not finite: the training diverged")
    model.load_state_dict(weights)
    _check_fingerprint(folder, record, datamodule, other_data)
    epochs = read_checkpoint(folder.last if folder.last.exists() else file).get("callbacks", {}).get("History", {})
    return LoadedRun(folder, cfg, datamodule, model.eval(), file, _hash(file), epochs.get("epochs", []), record)


def subject_of(run: LoadedRun, split: str, seed: int | None, device: str, cache_dir: str) -> Subject:
    """The model and data of a run, ready to be judged.

    Args:
        run: the run.
        split: ``val`` or ``test``.
        seed: of all that is drawn; None takes the run's own.
        device: ``auto``, ``cpu`` or ``cuda``.
        cache_dir: where feature networks are kept.

    Raises:
        UserError: there is no such split or device.
    """
    if split not in ("val", "test"):
        raise UserError(f"split={split}: choose val or test")
    here = torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not here):
        raise UserError(f"device={device}: choose {'auto, cpu or cuda' if here else 'cpu, there is no GPU here'}")
    return Subject(
        model=run.model.to("cuda" if here and device != "cpu" else "cpu"),
        datamodule=run.datamodule,
        split=split,
        seed=run.cfg.seed if seed is None else seed,
        cache_dir=Path(cache_dir),
        checkpoint=run.checkpoint_hash,
        epochs=run.epochs,
    )


# An optimizer is asked for and never used.
NO_TRAINING = OmegaConf.create({"optimizer": {"_target_": "torch.optim.SGD", "_partial_": True}, "schedule": None})


def _checkpoint_file(folder: RunFolder, name: str) -> Path:
    files = {"best": folder.best, "last": folder.last}
    if name not in files:
        raise UserError(f"checkpoint={name}: choose best or last")
    if not folder.path.is_dir():
        raise UserError(f"there is no run folder {folder.path}: run= must name the folder that a training left")
    if not folder.config.is_file():
        inside = sorted(p.parent.parent for p in folder.path.glob("**/.hydra/config.yaml"))
        hint = f": it holds runs, name one of them, such as run={inside[-1]}" if inside else ""
        raise UserError(f"{folder.path} is no run folder, it has no .hydra/config.yaml{hint}")
    if not files[name].is_file():
        other = next((f"; checkpoint={n} is there" for n, f in files.items() if f.is_file()), "")
        raise UserError(f"the run {folder.path} is incomplete: it has no checkpoints/{files[name].name}{other}")
    return files[name]


def _read_config(folder: RunFolder, data: Mapping[str, Any]) -> DictConfig:
    """The run's config, resolved, once its targets are seen to be harmless."""
    try:
        saved = OmegaConf.load(folder.config)
        saved.run_dir = str(folder.path)
        for key, value in data.items():
            if value is not None:
                saved.data[key] = value
        tree = OmegaConf.to_container(saved, resolve=True)
    except (YAMLError, OmegaConfBaseException, AttributeError, TypeError, OSError, ValueError) as error:
        raise UserError(f"cannot read {folder.config} ({_one_line(error)}): it is damaged or from elsewhere") from error
    for key in BUILT:
        if not isinstance(tree.get(key), dict) or "_target_" not in tree[key]:
            raise UserError(f"{folder.config} is not the config of a run: it has no {key}._target_")
    for key, name in _targets(tree):
        _refuse_foreign(folder, key, name)
    return OmegaConf.create(tree)


def _targets(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything that Hydra would import and call."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "_target_" and value == GET_CLASS:
                yield f"{at}path", tree.get("path")
            elif key == "_target_":
                yield f"{at}{key}", value
            yield from _targets(value, f"{at}{key}.")
    elif isinstance(tree, list):
        for position, value in enumerate(tree):
            yield from _targets(value, f"{at}{position}.")


def _refuse_foreign(folder: RunFolder, key: str, name: Any) -> None:
    """Raise a UserError unless a target is one that a run folder may name.

    The package of the name is not enough: ``torch.os.system`` begins with torch. What is built must be a class, made
    in one of the packages, of a kind whose construction runs no code of the config's choice.
    """
    refused = UserError(
        f"{folder.config} names {key}={name}: a run may only name modules and data sets of {', '.join(PACKAGES)}. "
        "Nothing of it was run"
    )
    if not isinstance(name, str) or name.split(".")[0] not in PACKAGES:
        raise refused
    if key.split(".", maxsplit=1)[0] not in BUILT:
        return
    try:
        kind = get_class(name)
    except Exception as error:
        if name.split(".")[0] == "src" and isinstance(error, ImportError):
            raise UserError(f"{folder.config} names {key}={name}, which this version of the code lacks") from error
        raise refused from error
    if kind.__module__.split(".")[0] not in PACKAGES or not issubclass(kind, BUILDABLE):
        raise refused


def _read_record(folder: RunFolder) -> dict[str, Any]:
    if not folder.metrics.exists():
        return {}
    try:
        record = json.loads(folder.metrics.read_text())
        return {"data": {}, **record}
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder.metrics} is damaged ({error}): delete it and evaluate again") from error


def _check_fingerprint(folder: RunFolder, record: dict[str, Any], datamodule: ImageDataModule, other: bool) -> None:
    then = record.get("data", {}).get("fingerprint")
    if then is not None and then != datamodule.fingerprint and not other:
        raise UserError(
            f"the images or splits of {datamodule.name} are not those that {folder.path} was trained on (fingerprint "
            f"{datamodule.fingerprint[:8]}, then {then[:8]}): its test images may be ones it has trained on. "
            "Set data.root to the right folder, or other_data=true to go on"
        )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
