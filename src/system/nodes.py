"""Walk a composed config without resolving what it leaves open."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from src.system.keys import kind_of
from src.system.kinds import Anything, Kind


def nodes(config: DictConfig, at: str = "") -> Iterator[tuple[str, DictConfig, str]]:
    """Yield the dotted key of each node, its parent node, and its name there."""
    for name in config:
        yield f"{at}{name}", config, name
        if isinstance(inside := own(config, name), DictConfig):
            yield from nodes(inside, f"{at}{name}.")


def leaves(config: DictConfig, keys: dict[str, Kind]) -> Iterator[tuple[str, DictConfig, str]]:
    """Yield those of :func:`nodes` that are values, or should be."""
    for key, node, name in nodes(config):
        value = not isinstance(kind_of(key, keys), Anything | None)
        if value or not isinstance(own(node, name), DictConfig):
            yield key, node, name


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig | ListConfig) else value


def has(config: DictConfig, key: str) -> bool:
    """Return whether the config has this key, whatever its value."""
    node: Any = config
    for name in key.split("."):
        if not isinstance(node, DictConfig) or name not in node.keys():  # noqa: SIM118 (`in` misses what is null)
            return False
        node = own(node, name)
    return True


def own(node: DictConfig, name: str) -> Any:
    """Return the node's own value; None if it is missing or an interpolation."""
    return None if OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name) else node[name]


def is_group(config: DictConfig, key: str) -> bool:
    return has(config, key) and isinstance(OmegaConf.select(config, key), DictConfig)
