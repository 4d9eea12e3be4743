"""Malformed inputs: overrides, image files and run folders."""

import resource
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import WARM
from tests.torture import bad_overrides, bad_pictures, bad_runs
from tests.torture.commands import Settings
from tests.torture.table import Case, Table

ROOM = 6 * 2**30  # bytes that a command may allocate, so that none takes all of the machine's memory


def cases(settings: Settings, table: Table) -> Iterator[Case]:
    """Yield the cases of malformed overrides, pictures and run folders."""
    limit_memory()
    yield from bad_overrides.cases(settings)
    yield from bad_pictures.cases(settings)
    yield from bad_runs.cases(settings)


def limit_memory() -> None:
    """Limit the memory of the warm process; the commands that it forks inherit the limit."""
    if not hasattr(resource, "prlimit"):
        return
    pages = int(Path(f"/proc/{WARM.pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.prlimit(WARM.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
