"""How a point stands, as its folder tells it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from src.system.contents import METRICS, POINT
from src.system.files import whole_file

Status = Literal["waiting", "running", "finished", "failed", "interrupted"]


@dataclass
class Record:
    """How a point stands; ``point.json`` in its folder.

    Attributes:
        overrides: its command line without the sweep's own keys.
        number: its place in the grid, from 0.
        status: ``running`` also for a point whose process was killed without a word.
        error: why it failed, in one line.
        diverged: whether its loss was no longer a number.
        attempts: how often it was started.
        seconds: of the last attempt, imports included.
        began: when that was, in seconds since 1970.
        pid: its process.
    """

    overrides: list[str]
    number: int = 0
    status: Status = "waiting"
    error: str | None = None
    diverged: bool = False
    attempts: int = 0
    seconds: float = 0.0
    began: float = 0.0
    pid: int | None = None

    @classmethod
    def load(cls, folder: Path) -> "Record | None":
        """The record in a folder; None where there is none that can be read."""
        try:
            return cls(**json.loads((folder / POINT).read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def save(self, folder: Path) -> None:
        """Write ``point.json``."""
        with whole_file(folder / POINT) as file:
            file.write_text(json.dumps(asdict(self), indent=2) + "\n")


def compared(metrics: dict[str, Any]) -> tuple[str | None, Any]:
    """The metric by which a run wants to be compared, and its value at the epoch that was kept, if it has one."""
    best = metrics["best"] if isinstance(metrics.get("best"), dict) else {}
    config = metrics["config"] if isinstance(metrics.get("config"), dict) else {}
    name = config.get("compare_by")
    if not isinstance(name, str):  # of versions that have no such key, what they kept the epoch by
        name = next(iter(best), None)
    return name, best.get(name)


def read_metrics(folder: Path) -> dict[str, Any]:
    """What a training left when it ended well; empty where it has not, or where that cannot be read."""
    try:
        metrics = json.loads((folder / METRICS).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    alone = {"evaluation"}  # of a training that has not finished
    return metrics if isinstance(metrics, dict) and metrics.keys() != alone else {}
