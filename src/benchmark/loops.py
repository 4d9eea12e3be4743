"""The compared training loops, each in a process of its own, told through its gate how many steps to do."""

import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, Self

from hydra_plugins.slots_launcher import TRAINING
from src.benchmark.gate import Round
from src.system.errors import UserError
from src.system.files import quoted
from src.system.processes import Process, Starter
from src.system.warm import forking

PATIENCE = 900.0  # seconds a loop may take to start, or for a round
POLL_EVERY = 0.2  # seconds
WARM = forking([*TRAINING, "src.benchmark.by_hand"])  # every loop is forked after the same imports


class Contender(NamedTuple):
    """One of the compared loops."""

    name: str  # in steps.csv and in the table
    loops: tuple[str, ...]  # as :class:`Loop` takes them; of several, the fastest is measured
    overrides: tuple[str, ...] = ()  # of this contender alone
    compiled: bool = False  # by torch, which may fail: its column is then empty
    gpu_only: bool = False
    package: str | None = None  # which it needs


def _bare(kind: str) -> tuple[str, ...]:
    return tuple(f"bare {kind} {layout}" for layout in ("contiguous_format", "channels_last"))


OURS, COMPILED = "ours", "ours compiled"
CONTENDERS = (
    Contender("tutorial", ("tutorial",)),
    Contender("pythae", ("pythae",), package="pythae"),
    Contender("bare eager", _bare("eager")),
    Contender("bare compiled", _bare("compiled"), compiled=True, gpu_only=True),
    Contender("bare CUDA graph", _bare("graph"), compiled=True, gpu_only=True),
    Contender(OURS, ("ours",)),
    Contender(COMPILED, ("ours",), ("compile=true",), compiled=True),
)


def present(package: str | None) -> bool:
    """Return whether a package is installed; none is needed where it is None."""
    return package is None or find_spec(package) is not None


def contenders(gpu: bool) -> list[Contender]:
    """Return those that can be measured here, on a GPU or on the CPU."""
    return [one for one in CONTENDERS if (gpu or not one.gpu_only) and present(one.package)]


def absent() -> str:
    """Return how to install the contenders that are not, as the end of a line."""
    missing = [one.name for one in CONTENDERS if not present(one.package)]
    return "".join(f"; without {name}, which is not installed: pip install '.[peers]'" for name in missing)


class Loop:
    """A training loop, whose process lives as long as the ``with`` block.

    Args:
        loop: ``ours``, which is ``python -m src.train`` with one more callback, or what
            :mod:`src.benchmark.by_hand` takes.
        command: its overrides.
        starter: how its process is started.

    Raises:
        UserError: from the ``with`` statement and from :meth:`run`, where the loop has ended (the message quotes its
            last line) or does nothing for :data:`PATIENCE` seconds.
    """

    def __init__(self, loop: str, command: Sequence[str], starter: Starter = WARM) -> None:
        self._loop = loop
        self._command = list(command)
        self._starter = starter

    def __enter__(self) -> Self:
        """Start the loop and wait until it has done its first step."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
            self._output = folder / "output"
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(folder / "gate"))
            listener.listen(1)
            listener.settimeout(POLL_EVERY)
            module, *words = self._program(folder)
            with self._output.open("w") as output:
                self._process = self._starter.start(module, words, os.environ, output)
            stack.callback(_kill, self._process)
            self._connection = stack.enter_context(self._accept(listener))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End the loop's process, whatever it is doing."""
        self._stack.close()

    def run(self, steps: int) -> Round:
        """Let the loop do some steps, and return how long they took."""
        with contextlib.suppress(OSError):  # what has ended is reported by _receive
            self._connection.send(steps)
        return self._receive()

    def _program(self, folder: Path) -> list[str]:
        address, run = folder / "gate", quoted(folder / "run")
        if self._loop != OURS:
            return ["src.benchmark.by_hand", self._loop, str(address), *self._command, f"run_dir={run}"]
        gate = ("_target_=src.benchmark.gate.GateCallback", f"address={quoted(address)}")
        settings = (f"hydra.run.dir={run}", *(f"+callbacks.gate.{setting}" for setting in gate))
        return ["src.train", *self._command, *settings]

    def _accept(self, listener: socket.socket) -> Connection:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                return Connection(listener.accept()[0].detach())
            if self._process.poll() is not None:
                raise self._ended()
        raise self._silent()

    def _receive(self) -> Round:
        try:
            if self._connection.poll(PATIENCE):
                return self._connection.recv()
        except (OSError, EOFError):
            raise self._ended() from None
        raise self._silent()

    def _ended(self) -> UserError:
        lines = [line for line in self._output.read_text(errors="replace").splitlines() if line.strip()]
        return UserError(f"the loop {self._loop} has ended: {lines[-1] if lines else 'it printed nothing'}")

    def _silent(self) -> UserError:
        return UserError(f"the loop {self._loop} has not answered for {PATIENCE / 60:.0f} minutes")


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
