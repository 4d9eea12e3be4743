"""A run's saved config, which may come from elsewhere: read in bounded time and memory."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.errors import UserError, one_line
from src.interrupts import time_limit

LARGEST = 2**20  # bytes
DEEPEST = 50  # levels
MOST_REFERENCES = 40  # values taken from others; some hundred could stand for more text than memory holds
SECONDS = 10.0


def read_saved_config(path: Path) -> DictConfig:
    """The config that a run has saved, not resolved.

    Raises:
        UserError: it is damaged, or nothing that a run saves: too large, too deep, or with YAML anchors or references
            that stand for more than they say.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        text = path.read_text()
        _check_events(text)
        if text.count("${") > MOST_REFERENCES:
            raise ValueError(f"it takes more than {MOST_REFERENCES} values from others")
        config = OmegaConf.create(yaml.safe_load(text))
        if not isinstance(config, DictConfig):
            raise ValueError("it holds no keys")
        return config
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError) as error:
        raise damaged(path, error) from error


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


def damaged(path: Path, error: BaseException) -> UserError:
    """The error for a file of a run that cannot be read."""
    return UserError(f"cannot read {path} ({one_line(error)[:200]}): it is damaged or from elsewhere")


def _check_events(text: str) -> None:
    """Refuse what a run never writes and what a small file can make endless."""
    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("it has YAML anchors")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is more than {DEEPEST} levels deep")
