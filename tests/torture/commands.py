"""How a campaign runs commands: forked from the warm process, in its own folder, within a time limit."""

import contextlib
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from src.system.processes import Process
from tests.helpers import PLAIN, ROOT, WARM

LIMIT = 120.0  # seconds; a command of this campaign takes one or two
SMALL = ("model=conv_tiny", "data=digits", "data.image_size=16", "data.batch_size=128")
QUIET = (*PLAIN, "~callbacks.progress_bar")

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What a campaign is asked for.

    Attributes:
        folder: where all of it happens; the working directory.
        seed: decides every case.
        count: how many cases, as a factor of the usual number.
        kills: how many processes are killed.
        jobs: commands at a time.
    """

    folder: Path
    seed: int = 0
    count: float = 1.0
    kills: int = 20
    jobs: int = 2

    def random(self, *what: object) -> random.Random:
        """A stream of its own for each thing that is drawn."""
        return random.Random(f"{self.seed}/{what}")

    def some(self, things: Sequence[T], usual: int, *what: object) -> list[T]:
        """As many of ``things`` as asked for, drawn; all where that is more."""
        wanted = max(1, round(usual * self.count))
        return list(things) if wanted >= len(things) else self.random("some", *what).sample(list(things), wanted)


class Done(NamedTuple):
    """How a command ended: its exit status, negative for a signal, None where it had to be stopped at the limit."""

    status: int | None
    output: str
    seconds: float


class Running:
    """A command that has been started, with its output in a file."""

    def __init__(self, words: Sequence[str], module: str = "src.train", **env: str) -> None:
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (read when it has ended)
        self._began = time.monotonic()
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env}
        self.process: Process = WARM.start(module, list(words), surroundings, self._output)

    def signal(self, number: signal.Signals, *, group: bool = True) -> None:
        """Send a signal to it, and to what it has started where that is in its group."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def done(self, limit: float = LIMIT) -> Done:
        """Wait for its end."""
        try:
            status = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait()
            status = None
        seconds = time.monotonic() - self._began
        with self._output as output:
            output.seek(0)
            return Done(status, output.read(), seconds)


def run(words: Sequence[str], module: str = "src.train", limit: float = LIMIT, **env: str) -> Done:
    """Run a command to its end."""
    return Running(words, module, **env).done(limit)


def at_once(jobs: int, work: Callable[[T], object], things: Iterable[T]) -> Iterator[object]:
    """The results of ``work`` in the order of ``things``, several at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(work, things)
