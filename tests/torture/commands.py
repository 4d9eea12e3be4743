"""Run commands with a time limit, forked from the warm process, in the campaign's folder."""

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

LIMIT = 120.0  # seconds; a command here takes one or two
SMALL = ("model=conv_tiny", "data=digits", "data.image_size=16", "data.batch_size=128")
QUIET = (*PLAIN, "~callbacks.progress_bar", "+trainer.enable_progress_bar=false")  # else Lightning's own bar

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Options of a campaign.

    Attributes:
        folder: holds all files; it is the working directory.
        seed: seed of all random choices.
        count: factor of the usual number of cases.
        kills: number of processes to kill.
        jobs: number of commands that run at a time.
    """

    folder: Path
    seed: int = 0
    count: float = 1.0
    kills: int = 20
    jobs: int = 2

    def random(self, *what: object) -> random.Random:
        """Return a random generator that depends on the seed and on ``what`` alone."""
        return random.Random(f"{self.seed}/{what}")

    def some(self, things: Sequence[T], usual: int, *what: object) -> list[T]:
        """Draw ``usual * count`` of ``things``, or return all where there are fewer."""
        wanted = max(1, round(usual * self.count))
        return list(things) if wanted >= len(things) else self.random("some", *what).sample(list(things), wanted)


class Done(NamedTuple):
    """The end of a command. Its exit status is negative after a signal, and None if the time limit was reached."""

    status: int | None
    output: str
    seconds: float


class Running:
    """A started command, with its output in a file."""

    def __init__(self, words: Sequence[str], module: str = "src.train", **env: str) -> None:
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (read after the command has ended)
        self._began = time.monotonic()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env}
        self.process: Process = WARM.start(module, list(words), environment, self._output)

    def signal(self, number: signal.Signals, *, group: bool = True) -> None:
        """Send a signal to the command, and with ``group`` to all processes of its group."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)

    def done(self, limit: float = LIMIT) -> Done:
        """Wait until the command ends, or kill it after ``limit`` seconds."""
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
    """Run a command and wait until it ends."""
    return Running(words, module, **env).done(limit)


def at_once(jobs: int, work: Callable[[T], object], things: Iterable[T]) -> Iterator[object]:
    """Yield ``work(thing)`` of all ``things`` in their order, with ``jobs`` running at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(work, things)
