"""The status of a point, read from its folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from src.system.contents import METRICS, POINT
from src.system.files import whole_file

Status = Literal["waiting", "running", "finished", "failed", "interrupted"]


@dataclass
class Record:
    """The status of a point: ``point.json`` in its folder.

    Attributes:
        overrides: its command line without the sweep's own keys.
        number: its place in the grid, from 0.
        status: ``running`` also for a point whose process was killed with SIGKILL together with the sweep.
        error: why it failed, in one line.
        diverged: whether its loss was no longer a number.
        attempts: number of times it was started.
        seconds: duration of the last attempt, imports included.
        began: start of the last attempt, in seconds since 1970.
        pid: id of its process.
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
        """Read the record in a folder; return None where there is none or it cannot be read."""
        try:
            return cls(**json.loads((folder / POINT).read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            return None

    def save(self, folder: Path) -> None:
        """Write ``point.json``."""
        with whole_file(folder / POINT) as file:
            file.write_text(json.dumps(asdict(self), indent=2) + "\n")


def compared(metrics: dict[str, Any]) -> tuple[str | None, Any]:
    """Return the metric that a run is compared by, and its value at the epoch that was kept, if there is one."""
    best = metrics["best"] if isinstance(metrics.get("best"), dict) else {}
    config = metrics["config"] if isinstance(metrics.get("config"), dict) else {}
    name = config.get("compare_by")
    if not isinstance(name, str):  # versions without that key recorded the metric that chose the epoch
        name = next(iter(best), None)
    return name, best.get(name)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read ``metrics.json``; return an empty dict if the training has not finished or the file cannot be read."""
    try:
        metrics = json.loads((folder / METRICS).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    alone = {"evaluation"}  # an evaluation of a training that has not finished
    return metrics if isinstance(metrics, dict) and metrics.keys() != alone else {}
