"""A run's saved config, which may come from elsewhere: read in bounded time and memory."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.system.errors import UserError, one_line
from src.system.signals import time_limit

# Where modules that a run's config may name were once.
MOVED = {
    "src.models.base.Schedule": "src.training.recipe.Schedule",
    "src.likelihoods": "src.models.likelihoods",
    "src.callbacks.guard": "src.training.guard",
    "src.callbacks.memory": "src.training.history",
    "src.callbacks.resume": "src.training.resume",
    "src.callbacks.show": "src.training.dashboard",
}
LARGEST = 2**16  # bytes
DEEPEST = 50  # levels
LONGEST = 2**12  # times that a text could be repeated by values that take it from each other
SECONDS = 10.0
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _renamed(tree: Any) -> Any:
    """The same with today's names of classes that have moved since a run was saved."""
    if isinstance(tree, dict):
        return {key: _moved(value) if key == "_target_" else _renamed(value) for key, value in tree.items()}
    return [_renamed(value) for value in tree] if isinstance(tree, list) else tree


def _moved(name: Any) -> Any:
    old = next((old for old in MOVED if isinstance(name, str) and f"{name}.".startswith(f"{old}.")), None)
    return name if old is None else MOVED[old] + name.removeprefix(old)


def read_saved_config(path: Path) -> DictConfig:
    """The config that a run has saved, not resolved.

    Raises:
        UserError: it is damaged, or nothing that a run saves: too large, too deep, or with YAML anchors or references
            that stand for more than they say.
    """
    try:
        if not isinstance(tree := read_yaml(path), dict):
            raise ValueError("it holds no keys")
        if math.prod(value.count("${") for value in _texts(tree) if "${" in value) > LONGEST:
            raise ValueError("its values take too much from each other")
        with time_limit(SECONDS, f"cannot read {path}: what its values refer to has no end"):
            config = OmegaConf.create(_renamed(tree))
            _refuse_copies(config)
        return config
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError) as error:
        raise damaged(path, error) from error


def read_yaml(path: Path) -> Any:
    """What a small YAML file holds, if that is no more than it says.

    Raises:
        yaml.YAMLError, OSError, ValueError, RecursionError: it cannot be read, is too large, too deep, or has anchors.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    text = path.read_text(encoding="utf-8")
    _check_events(text)
    return yaml.load(text, LOADER)


def resolved(config: DictConfig, path: Path) -> dict[str, Any]:
    """The plain values of a saved config, those that it takes from others filled in.

    Raises:
        UserError: they cannot be, or not within seconds.
    """
    try:
        with time_limit(SECONDS, f"cannot read {path}: what its values refer to has no end"):
            return OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, AttributeError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise damaged(path, error) from error


def saved_value(path: Path, key: str) -> Any:
    """What a saved config says of one dotted key.

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
    """The error for a file of a run that cannot be read."""
    return UserError(f"cannot read {path} ({one_line(error)[:200]}): it is damaged or from elsewhere")


def _check_events(text: str) -> None:
    """Refuse what a run never writes and what a small file can make endless."""
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("it has YAML anchors")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is more than {DEEPEST} levels deep")


def _texts(tree: Any) -> Iterator[str]:
    """The texts among the values of a tree."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _texts(value)


def _refuse_copies(node: Any) -> None:
    """Raise a ValueError where a value is a copy of a node that holds references itself: such copies multiply."""
    for name in range(len(node)) if isinstance(node, ListConfig) else list(node):
        inside = node._get_node(name)
        if inside._is_interpolation():
            target = inside._maybe_dereference_node(throw_on_resolution_failure=False)
            if isinstance(target, Container) and "${" in OmegaConf.to_yaml(target):
                raise ValueError("it copies what refers to others")
        elif isinstance(inside, Container) and not inside._is_none() and not inside._is_missing():
            _refuse_copies(inside)
