"""Read a run's saved config, which may come from elsewhere, in bounded time and memory."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.system.errors import UserError, one_line
from src.system.signals import time_limit

# Earlier names of modules and classes in the parts of a config that are built or compared on a resume; callbacks and
# loggers are neither.
MOVED = {
    "src.models.base.Schedule": "src.training.recipe.Schedule",
    "src.likelihoods": "src.models.likelihoods",
}
# Settings of a model that came later, with the values that earlier versions had built in.
ADDED = {
    "kl_cycle_steps": 0,
    "num_samples": 1,
    "loss": {"_target_": "src.models.losses.Elbo"},
    "start_at_mean": False,
    "posterior": {"_target_": "src.models.posteriors.GaussianPosterior", "_partial_": True},
    "prior": {"_target_": "src.models.priors.StandardNormal", "_partial_": True},
}
# The same for data of this class.
FOLDERS, ADDED_TO_FOLDERS = "src.data.folder.FolderDataModule", {"fit": "stretch"}
LARGEST = 2**16  # bytes
DEEPEST = 50  # levels
MOST_REPETITIONS = 2**12  # copies of a text through nested references
SECONDS = 10.0  # to resolve a config
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _renamed(tree: Any) -> Any:
    """Return a config with the current names of classes that have moved since it was saved."""
    if isinstance(tree, dict):
        return {key: _current_name(value) if key == "_target_" else _renamed(value) for key, value in tree.items()}
    return [_renamed(value) for value in tree] if isinstance(tree, list) else tree


def _completed(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the settings that its version did not have yet."""
    if isinstance(data := tree.get("data"), dict) and data.get("_target_") == FOLDERS:
        tree = tree | {"data": ADDED_TO_FOLDERS | data}
    return tree | {"model": ADDED | tree["model"]} if isinstance(tree.get("model"), dict) else tree


def _current_name(name: Any) -> Any:
    old = next((old for old in MOVED if isinstance(name, str) and f"{name}.".startswith(f"{old}.")), None)
    return name if old is None else MOVED[old] + name.removeprefix(old)


def read_saved_config(path: Path) -> DictConfig:
    """Return the config that a run has saved, not resolved.

    Raises:
        UserError: it is damaged, or a run cannot have saved it: it is too large, too deep, or has YAML anchors or
            references that expand without bounds.
    """
    try:
        if not isinstance(tree := read_yaml(path), dict):
            raise ValueError("it holds no keys")
        if math.prod(value.count("${") for value in _texts(tree) if "${" in value) > MOST_REPETITIONS:
            raise ValueError("its values refer to each other too often")
        with time_limit(SECONDS, f"cannot read {path}: its references do not end"):
            config = OmegaConf.create(_completed(_renamed(tree)))
            _refuse_copies(config)
        return config
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError) as error:
        raise damaged(path, error) from error


def read_yaml(path: Path) -> Any:
    """Return the content of a small YAML file without anchors.

    Raises:
        yaml.YAMLError, OSError, ValueError, RecursionError: it cannot be read, is too large, too deep, or has anchors.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    text = path.read_text(encoding="utf-8")
    _check_events(text)
    return yaml.load(text, LOADER)


def resolved(config: DictConfig, path: Path) -> dict[str, Any]:
    """Return the plain values of a saved config with all references resolved.

    Raises:
        UserError: they cannot be resolved within ten seconds.
    """
    try:
        with time_limit(SECONDS, f"cannot read {path}: its references do not end"):
            return OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, AttributeError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise damaged(path, error) from error


def saved_value(path: Path, key: str) -> Any:
    """Return the value of one dotted key of a saved config.

    Raises:
        UserError: the config is damaged, or has no such key.
    """
    config = read_saved_config(path)
    try:
        value = OmegaConf.select(config, key)
    except OmegaConfBaseException as error:
        raise damaged(path, error) from error
    if value is None:
        raise damaged(path, KeyError(f"it has no {key}"))
    return value


def damaged(path: Path, error: BaseException) -> UserError:
    """Return the error for a file of a run that cannot be read."""
    return UserError(f"cannot read {path} ({one_line(error)[:200]}): it is damaged or from elsewhere")


def _check_events(text: str) -> None:
    """Refuse anchors and deep nesting, which a run never writes and a small file can use to exhaust memory."""
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("it has YAML anchors")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is more than {DEEPEST} levels deep")


def _texts(tree: Any) -> Iterator[str]:
    """Yield the texts among the values of a tree."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _texts(value)


def _refuse_copies(node: Any) -> None:
    """Raise a ValueError if a value refers to a node that holds references itself: such copies multiply."""
    for name in range(len(node)) if isinstance(node, ListConfig) else list(node):
        inside = node._get_node(name)
        if inside._is_interpolation():
            target = inside._maybe_dereference_node(throw_on_resolution_failure=False)
            if isinstance(target, Container) and "${" in OmegaConf.to_yaml(target):
                raise ValueError("it has references to nodes with references")
        elif isinstance(inside, Container) and not inside._is_none() and not inside._is_missing():
            _refuse_copies(inside)
