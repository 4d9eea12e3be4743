"""Malformed inputs: overrides, image files and run folders."""

import resource
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import WARM
from tests.torture import bad_overrides, bad_pictures, bad_runs
from tests.torture.commands import Settings
from tests.torture.table import Case, Table

ROOM = 6 * 2**30  # bytes that a command may ask for: one that wants all of the machine is not to get it


def cases(settings: Settings, table: Table) -> Iterator[Case]:
    """All three."""
    limit_memory()
    yield from bad_overrides.cases(settings)
    yield from bad_pictures.cases(settings)
    yield from bad_runs.cases(settings)


def limit_memory() -> None:
    """Commands inherit it from the process that they are forked from."""
    if not hasattr(resource, "prlimit"):
        return
    pages = int(Path(f"/proc/{WARM.pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.prlimit(WARM.pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
