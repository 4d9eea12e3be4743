"""Read a run back from its folder alone: config, data and model.

A run folder may come from elsewhere and is not trusted. Checkpoints are read with ``weights_only=True``. Only ``data``
and ``model`` of the config are built, and not by Hydra, which would call anything: see :func:`_build`.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import Dataset

from src.data.base import ImageDataModule
from src.data.folder import FolderDataModule
from src.models.base import BaseVAE
from src.models.predictor import Predictor
from src.runs.checkpoints import fingerprint_in, hash_of, read_checkpoint, weights_of
from src.runs.folder import RunFolder, flatten, git_commit
from src.runs.metrics_file import read_record
from src.runs.trust import read_saved_config, resolved
from src.system.contents import RUN_CONTENTS
from src.system.errors import UserError, memory_full, one_line
from src.system.files import refuse_links_out
from src.system.keys import JUDGED, READER, check, kind_of
from src.system.kinds import spelled
from src.training.acceleration import lay_out
from src.training.history import mark_kept

log = logging.getLogger(__name__)

PACKAGES = ("src", "torch", "torchvision", "lightning", "torchmetrics")
BUILT = {"data": ImageDataModule, "model": BaseVAE}  # the parts of a config that are built
GET_CLASS = "hydra.utils.get_class"  # conf/data/mnist.yaml names a data set class with it


class LoadedRun(NamedTuple):
    """Hold the content of a run folder, ready for use."""

    folder: RunFolder
    datamodule: ImageDataModule
    model: BaseVAE  # in eval mode, on the CPU
    seed: int
    checkpoint: Path
    checkpoint_hash: str  # first 16 hex digits of the file's SHA-256
    epochs: list[dict[str, float]]  # metrics of every epoch; see History
    record: dict[str, Any]  # metrics.json, empty if training did not finish


def load_run(
    path: str | Path,
    checkpoint: str = "best",
    data_root: str | None = None,
    cache_dir: str = "outputs/cache",
    other_data: bool = False,
) -> LoadedRun:
    """Read a run folder.

    Args:
        path: the folder.
        checkpoint: ``best`` or ``last``.
        data_root: folder of the images on this machine; None for the run's.
        cache_dir: folder of decoded images; it replaces the run's.
        other_data: accept images or splits other than those of the training.

    Raises:
        UserError: the folder is incomplete, foreign, of another version of the code, or its data are not here.
    """
    check("run", str(path), READER["run"])
    folder = RunFolder(Path(path).expanduser())
    file = _checkpoint_file(folder, checkpoint)
    config = _read_config(folder)
    record = read_record(folder.metrics)
    advice = _advice(folder, record)
    datamodule = _built(folder, "data", _data_here(config["data"], data_root, cache_dir), advice)
    if hasattr(datamodule, "download"):
        datamodule.download = False  # a foreign folder must not decide what is written where
    if other_data and isinstance(datamodule, FolderDataModule):
        _read_as_trained(folder, record.get("data", {}).get("treatment", {}), datamodule)
    told = {"image_shape": datamodule.image_shape, "images": datamodule.train_images}
    model = _built(folder, "model", config["model"] | told, advice)
    held = read_checkpoint(file)
    model.load_state_dict(_finite_weights(file, held, model, advice))
    file_hash = _checked_hash(file, record)
    _check_fingerprint(folder, record.get("data", {}).get("fingerprint"), held, datamodule, other_data)
    seed = config["seed"] if isinstance(config.get("seed"), int) else 0
    return LoadedRun(folder, datamodule, model.eval(), seed, file, file_hash, _epochs(folder.last, held), record)


def predictor_of(run: LoadedRun, split: str, seed: int | None, device: str, cache_dir: str) -> Predictor:
    """Return the predictor of a run: its model on a device, and the images of a split.

    Args:
        run: the run.
        split: ``val`` or ``test``.
        seed: seed of all random draws; None for the run's.
        device: ``auto``, ``cpu`` or ``cuda``.
        cache_dir: folder of feature networks.

    Raises:
        UserError: there is no such split or device.
    """
    for key, value in (("split", split), ("seed", seed), ("device", device)):
        check(key, value, JUDGED[key])
    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise UserError(f"device={device}: choose cpu, there is no GPU here")
    on_gpu = has_gpu and device != "cpu"
    torch.backends.cudnn.allow_tf32 = False  # predictions are computed in float32, see in_float32
    return Predictor(
        model=lay_out(run.model, "32-true", on_gpu).to("cuda" if on_gpu else "cpu"),
        datamodule=run.datamodule,
        split=split,
        seed=run.seed if seed is None else seed,
        cache_dir=Path(cache_dir),
        checkpoint=run.checkpoint_hash,
        epochs=run.epochs,
    )


# ---- the files -----------------------------------------------------------------------------------------------------


def _checkpoint_file(folder: RunFolder, name: str) -> Path:
    check("checkpoint", name, READER["checkpoint"])
    files = {"best": folder.best, "last": folder.last}
    if not files[name].is_file():
        other = next((f"; checkpoint={n} is there" for n, f in files.items() if f.is_file()), "")
        raise UserError(f"the run {folder.path} is incomplete: it has no checkpoints/{files[name].name}{other}")
    refuse_links_out(folder.path, RUN_CONTENTS)
    return files[name]


def _read_config(folder: RunFolder) -> dict[str, Any]:
    """Return the run's config, resolved, after checking the targets that it names and its values."""
    saved = read_saved_config(folder.config)
    saved.run_dir = str(folder.path)
    tree = resolved(saved, folder.config)
    for key in BUILT:
        if not isinstance(tree.get(key), dict) or "_target_" not in tree[key]:
            raise UserError(f"{folder.config} is not the config of a run: it has no {key}._target_")
    for key, name in (found for part in BUILT for found in _targets(tree[part], f"{part}.")):
        if not isinstance(name, str) or name.split(".")[0] not in PACKAGES:
            raise _refusal(folder, key, name)
    for key, value in flatten({part: tree[part] for part in BUILT}):
        if (kind := kind_of(key)) is not None:
            check(key, value, kind, f"{folder.config} says {key}={spelled(value)}")
    return tree


def _targets(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of everything that Hydra would import and call."""
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


def _advice(folder: RunFolder, record: dict[str, Any]) -> str:
    """Say why the config, the checkpoint and the code may not fit together."""
    commit = record.get("git_commit")
    if commit is not None and commit == git_commit():
        return f"{folder.config} was changed since, or {folder.path} put together from several"
    return f"{folder.path} was written by another version of the code" + (f": commit {commit}" if commit else "")


def _data_here(data: dict[str, Any], root: str | None, cache_dir: str) -> dict[str, Any]:
    """Return the data node of a config with the folders of this machine."""
    if root is not None and "root" not in data:
        raise UserError(f"data.root={root}: the images of this run ({data.get('name')}) are in no folder")
    here = {"root": root, "cache_dir": cache_dir}
    return data | {key: value for key, value in here.items() if key in data and value is not None}


def _finite_weights(file: Path, held: dict[str, Any], model: BaseVAE, advice: str) -> dict[str, torch.Tensor]:
    weights = weights_of(file, held, model, f"Its config is not the one it was trained with, or {advice}")
    if broken := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise UserError(f"the weights {broken[0]} in {file} are not finite: the training diverged")
    return weights


def _epochs(last: Path, held: dict[str, Any]) -> list[dict[str, float]]:
    """Return the history of the last checkpoint, or of the one that is ``held`` if the last cannot be read."""
    found: Any = held
    with contextlib.suppress(UserError):
        found = read_checkpoint(last)
    callbacks = found.get("callbacks") if isinstance(found, dict) else None
    states = {k: v for k, v in callbacks.items() if isinstance(v, dict)} if isinstance(callbacks, dict) else {}
    epochs = states.get("History", {}).get("epochs")
    epochs = [epoch for epoch in epochs if isinstance(epoch, dict)] if isinstance(epochs, list) else []
    best = next((state["best_epoch"] for state in states.values() if "best_epoch" in state), None)
    return mark_kept(epochs, best)


def _read_as_trained(folder: RunFolder, treatment: Any, datamodule: FolderDataModule) -> None:
    """Have the files of other data read with the range of grey that a run has recorded."""
    try:
        datamodule.read_as(treatment)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder.metrics} is damaged: its data.treatment is that of no run ({treatment})") from error


def _check_fingerprint(
    folder: RunFolder, recorded: Any, held: dict[str, Any], datamodule: ImageDataModule, other_data: bool
) -> None:
    """Compare the data with those of the training: as recorded in metrics.json, else in the checkpoint."""
    trained_on = recorded or fingerprint_in(held, datamodule)
    if trained_on is None:
        log.warning("%s records no data fingerprint: data not checked", folder.path)
    elif trained_on != datamodule.fingerprint and not other_data:
        raise UserError(
            f"the images or splits of {datamodule.name} are not those that {folder.path} was trained on (fingerprint "
            f"{datamodule.fingerprint[:8]}, then {str(trained_on)[:8]}): its test images may be ones it has trained "
            "on. Set data.root to the right folder, or other_data=true to go on"
        )


def _checked_hash(file: Path, record: dict[str, Any]) -> str:
    """Return the hash of a checkpoint after comparing it with the recorded one, if there is a record."""
    file_hash, recorded = hash_of(file), record.get("checkpoints", {}).get(file.name)
    if recorded not in (None, file_hash):
        raise UserError(
            f"{file} is not the file that its training ended with (hash {file_hash[:8]}, then {str(recorded)[:8]}): it "
            "is damaged or exchanged; restore it, or remove metrics.json if that is intended"
        )
    return file_hash


# ---- what the config names -----------------------------------------------------------------------------------------


def _built(folder: RunFolder, key: str, node: dict[str, Any], advice: str) -> Any:
    """Build the data or the model of a config."""
    try:
        built = _build(folder, key, node)
    except UserError:
        raise
    except Exception as error:  # a constructor may raise anything for values that no run has
        if memory_full(error):
            raise
        raise UserError(f"the {key} of {folder.config} cannot be built ({one_line(error)}): {advice}") from error
    if not isinstance(built, BUILT[key]):
        raise _refusal(folder, f"{key}._target_", node["_target_"])
    return built


def _build(folder: RunFolder, key: str, node: Any) -> Any:
    """Build what ``node`` describes as Hydra would, with fewer targets allowed.

    Checking the package of a target is not enough: ``torch.os.system`` begins with torch. A target must be a module or
    data module class that is defined in ``src`` or ``torch.nn``: their constructors run no code of the config's
    choice. ``get_class`` may name a data set of torchvision.
    """
    if isinstance(node, list):
        return [_build(folder, f"{key}.{i}", value) for i, value in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if node.get("_target_") == GET_CLASS:
        return _allowed(folder, f"{key}.path", node.get("path"), ("torchvision.datasets.",), Dataset)
    options = {name: value for name, value in node.items() if name not in ("_target_", "_partial_")}
    values = {name: _build(folder, f"{key}.{name}", value) for name, value in options.items()}
    if "_target_" not in node:
        return values
    kind = _allowed(folder, f"{key}._target_", node["_target_"], ("src.", "torch.nn."), (nn.Module, ImageDataModule))
    return functools.partial(kind, **values) if node.get("_partial_") else kind(**values)


def _allowed(folder: RunFolder, key: str, name: Any, places: tuple[str, ...], kinds: Any) -> type:
    """Return the class of that name if it is defined in one of ``places`` and derives from one of ``kinds``."""
    try:
        module, _, kind_name = name.rpartition(".")
        kind = getattr(import_module(module), kind_name)
    except Exception as error:  # an import or a lookup may raise anything
        if str(name).startswith("src.") and isinstance(error, ImportError | AttributeError):
            raise UserError(f"{folder.config} names {key}={name}, which this version of the code lacks") from error
        raise _refusal(folder, key, name) from error
    if not isinstance(kind, type) or not f"{kind.__module__}.".startswith(places) or not issubclass(kind, kinds):
        raise _refusal(folder, key, name)
    return kind


def _refusal(folder: RunFolder, key: str, name: Any) -> UserError:
    return UserError(
        f"{folder.config} names {key}={name}: a run may only name modules and data sets of {', '.join(PACKAGES)}. "
        "Nothing of it was run"
    )
