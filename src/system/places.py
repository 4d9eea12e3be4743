"""Kinds of paths: some must lead to a file or folder that exists."""

from collections.abc import Callable
from dataclasses import dataclass
from glob import iglob
from pathlib import Path
from typing import Any

from src.system.files import readable
from src.system.kinds import Text

RUN_CONFIG = ".hydra/config.yaml"  # marks a folder as that of a run


@dataclass(frozen=True)
class Place(Text):
    """A path, which may have to lead to something that exists.

    Attributes:
        words: what the path leads to.
        obstacle: says why a path does not lead to that; returns an empty text where it does.
    """

    words: str = "a path"
    obstacle: Callable[[Path], str] = lambda path: ""

    def takes(self, value: Any) -> bool:
        """As :meth:`Kind.takes` says."""
        return super().takes(value) and not self.obstacle(Path(value).expanduser())

    def hint(self, value: Any) -> str:
        """Say what is in the way."""
        return self.obstacle(Path(value).expanduser()) if super().takes(value) else ""


def no_folder(path: Path) -> str:
    """Say why ``path`` is not a folder."""
    if path.is_dir():
        return ""
    return f"{readable(path)} is a file" if path.exists() else f"there is no folder {readable(path)}"


def no_file(path: Path) -> str:
    """Say why ``path`` is not a file."""
    if path.is_file():
        return ""
    return f"{readable(path)} is a folder" if path.exists() else f"there is no file {readable(path)}"


def no_run(path: Path) -> str:
    """Say why ``path`` is not the folder of a run, and name a run that it holds."""
    if (obstacle := no_folder(path)) or (path / RUN_CONFIG).is_file():
        return obstacle
    kept = "checkpoints/best.ckpt"
    inside = next((found for depth in (1, 2, 3) if (found := sorted(path.glob(depth * "*/" + kept)))), None)
    example = f"; it holds runs, such as run={readable(inside[-1].parents[1])}" if inside else ""
    return f"{readable(path)} has no {RUN_CONFIG}{example}"


def no_match(path: Path) -> str:
    """Say that there is neither a file nor a folder at ``path``, and nothing that it matches as a glob."""
    exists = path.exists() or next(iglob(str(path), recursive=True), None)
    return "" if exists else f"there is nothing at {readable(path)}"
