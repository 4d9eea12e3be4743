"""A run read back: its config, its data, its model, from the run folder alone and without trusting it.

A run folder may come from elsewhere. Checkpoints are read with ``weights_only=True``. Of the config only ``data`` and
``model`` are built, and not by Hydra, which would call anything: see :func:`_build`.
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
from src.models.base import BaseVAE
from src.models.predictor import Predictor
from src.runs.checkpoints import fingerprint_in, hash_of, read_checkpoint, weights_of
from src.runs.folder import RunFolder, flatten, git_commit
from src.runs.metrics_file import read_record
from src.runs.trust import read_saved_config, resolved
from src.system.contents import OURS
from src.system.errors import UserError, memory_full, one_line
from src.system.files import refuse_links_out
from src.system.keys import READER, check, kind_of
from src.system.kinds import spelled
from src.training.acceleration import lay_out
from src.training.history import mark_kept

log = logging.getLogger(__name__)

PACKAGES = ("src", "torch", "torchvision", "lightning", "torchmetrics")
BUILT = {"data": ImageDataModule, "model": BaseVAE}  # the parts of a config that are built here
GET_CLASS = "hydra.utils.get_class"  # how conf/data/mnist.yaml names a data set class without building it


class LoadedRun(NamedTuple):
    """A run folder's content, ready for use."""

    folder: RunFolder
    datamodule: ImageDataModule
    model: BaseVAE  # in eval mode, on the CPU
    seed: int
    checkpoint: Path
    checkpoint_hash: str  # first 16 hex digits of the file's SHA-256
    epochs: list[dict[str, float]]  # metrics of every epoch; see History
    record: dict[str, Any]  # metrics.json, empty where training did not finish


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
        data_root: where the images are now; None leaves what the run says.
        cache_dir: where decoded images are kept, whatever the run says.
        other_data: go on where the images or splits are not those that the run was trained on.

    Raises:
        UserError: the folder is incomplete, foreign, of another version of the code, or its data are not here.
    """
    if not Path(path).is_dir() or not str(path):
        what = "is a file: name the run folder around it" if Path(path).is_file() else "is no folder"
        raise UserError(f"run={path} {what}; run= must name the folder that a training left")
    folder = RunFolder(path)
    file = _checkpoint_file(folder, checkpoint)
    config = _read_config(folder)
    record = read_record(folder.metrics)
    commit = record.get("git_commit")
    if commit is not None and commit == git_commit():
        advice = f"{folder.config} was changed since, or {folder.path} put together from several"
    else:
        advice = f"{folder.path} was written by another version of the code" + (f": commit {commit}" if commit else "")

    data = config["data"]
    for key, value in (("root", data_root), ("cache_dir", cache_dir)):
        if key in data and value is not None:
            data[key] = value
        elif key == "root" and value is not None:
            raise UserError(f"data.root={value}: the images of this run ({data.get('name')}) are in no folder")
    datamodule = _built(folder, "data", data, advice)
    if hasattr(datamodule, "download"):
        datamodule.download = False  # wherever the folder comes from, nothing is fetched to wherever it says
    model = _built(folder, "model", config["model"] | {"image_shape": datamodule.image_shape}, advice)

    held = read_checkpoint(file)
    weights = weights_of(file, held, model, f"Its config is not the one it was trained with, or {advice}")
    if broken := [name for name, w in weights.items() if not w.isfinite().all()]:
        raise UserError(f"the weights {broken[0]} in {file} are not finite: the training diverged")
    model.load_state_dict(weights)
    hashed = _checked_hash(file, record)
    then = record.get("data", {}).get("fingerprint") or fingerprint_in(held, datamodule)
    _check_fingerprint(folder, then, datamodule, other_data)
    epochs = _epochs(folder.last, held)
    seed = config["seed"] if isinstance(config.get("seed"), int) else 0
    return LoadedRun(folder, datamodule, model.eval(), seed, file, hashed, epochs, record)


def predictor_of(run: LoadedRun, split: str, seed: int | None, device: str, cache_dir: str) -> Predictor:
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
    for key, value in (("split", split), ("seed", seed), ("device", device)):
        check(key, value, READER[key])
    here = torch.cuda.is_available()
    if device == "cuda" and not here:
        raise UserError(f"device={device}: choose cpu, there is no GPU here")
    on_gpu = here and device != "cpu"
    torch.backends.cudnn.allow_tf32 = False  # what is judged is computed in float32, see in_float32
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
    if not folder.config.is_file():
        inside = sorted(p.parent.parent for p in folder.path.glob("**/.hydra/config.yaml"))
        hint = f": it holds runs, name one of them, such as run={inside[-1]}" if inside else ""
        raise UserError(f"{folder.path} is no run folder, it has no .hydra/config.yaml{hint}")
    if not files[name].is_file():
        other = next((f"; checkpoint={n} is there" for n, f in files.items() if f.is_file()), "")
        raise UserError(f"the run {folder.path} is incomplete: it has no checkpoints/{files[name].name}{other}")
    refuse_links_out(folder.path, OURS)
    return files[name]


def _read_config(folder: RunFolder) -> dict[str, Any]:
    """The run's config, resolved, once its targets are seen to be ones that a run may name."""
    saved = read_saved_config(folder.config)
    saved.run_dir = str(folder.path)
    tree = resolved(saved, folder.config)
    for key in BUILT:
        if not isinstance(tree.get(key), dict) or "_target_" not in tree[key]:
            raise UserError(f"{folder.config} is not the config of a run: it has no {key}._target_")
    for key, name in (found for part in BUILT for found in _targets(tree[part], f"{part}.")):  # the rest is not built
        if not isinstance(name, str) or name.split(".")[0] not in PACKAGES:
            raise _refusal(folder, key, name)
    for key, value in flatten({part: tree[part] for part in BUILT}):
        if (kind := kind_of(key)) is not None:
            check(key, value, kind, f"{folder.config} says {key}={spelled(value)}")
    return tree


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


def _epochs(last: Path, held: dict[str, Any]) -> list[dict[str, float]]:
    """The history in the last checkpoint, or where that cannot be read in the one that is ``held``."""
    found: Any = held
    with contextlib.suppress(UserError):
        found = read_checkpoint(last)
    callbacks = found.get("callbacks") if isinstance(found, dict) else None
    states = {k: v for k, v in callbacks.items() if isinstance(v, dict)} if isinstance(callbacks, dict) else {}
    epochs = states.get("History", {}).get("epochs")
    epochs = [epoch for epoch in epochs if isinstance(epoch, dict)] if isinstance(epochs, list) else []
    best = next((state["best_metrics"] for state in states.values() if "best_metrics" in state), None)
    return mark_kept(epochs, best if isinstance(best, dict) else {})


def _check_fingerprint(folder: RunFolder, then: Any, datamodule: ImageDataModule, other: bool) -> None:
    if then is None:
        log.warning("%s records no data fingerprint: data not checked", folder.path)
    elif then != datamodule.fingerprint and not other:
        raise UserError(
            f"the images or splits of {datamodule.name} are not those that {folder.path} was trained on (fingerprint "
            f"{datamodule.fingerprint[:8]}, then {str(then)[:8]}): its test images may be ones it has trained on. "
            "Set data.root to the right folder, or other_data=true to go on"
        )


def _checked_hash(file: Path, record: dict[str, Any]) -> str:
    """The hash of a checkpoint, once it is seen to be the one that its training has recorded, if it has."""
    hashed, expected = hash_of(file), record.get("checkpoints", {}).get(file.name)
    if expected not in (None, hashed):
        raise UserError(
            f"{file} is not the file that its training ended with (hash {hashed[:8]}, then {str(expected)[:8]}): it is "
            "damaged or exchanged; bring it back, or take metrics.json away if that is meant to be"
        )
    return hashed


# ---- what the config names -----------------------------------------------------------------------------------------


def _built(folder: RunFolder, key: str, node: dict[str, Any], advice: str) -> Any:
    """The data or the model of a config."""
    try:
        thing = _build(folder, key, node)
    except UserError:
        raise
    except Exception as error:  # whatever values that no run has make a constructor raise
        if memory_full(error):
            raise
        raise UserError(f"the {key} of {folder.config} cannot be built ({one_line(error)}): {advice}") from error
    if not isinstance(thing, BUILT[key]):
        raise _refusal(folder, f"{key}._target_", node["_target_"])
    return thing


def _build(folder: RunFolder, key: str, node: Any) -> Any:
    """What ``node`` describes, as Hydra would build it, but for what it may name.

    The package of a name is not enough: ``torch.os.system`` begins with torch. A target must be a class, made in
    ``src`` or ``torch.nn``, and a module or a data module: to construct one runs no code of the config's choice.
    ``get_class`` may name a data set of torchvision.
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
    """The class of that name, if it was made in one of these places and is of one of these kinds."""
    try:
        module, _, kind_name = name.rpartition(".")
        kind = getattr(import_module(module), kind_name)
    except Exception as error:  # whatever an import or a lookup raises
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
