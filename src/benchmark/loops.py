"""A training loop in a process of its own, told through its gate how many steps to do."""

import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from hydra_plugins.slots_launcher import TRAINING
from src.benchmark.gate import Round
from src.system.errors import UserError
from src.system.files import quoted
from src.system.processes import Process, Starter
from src.system.warm import forking

PATIENCE = 900.0  # seconds a loop may take to start, or for a round
POLL_EVERY = 0.2  # seconds
WARM = forking([*TRAINING, "src.benchmark.by_hand"])  # every loop is forked after the same imports


class Loop:
    """A training loop, whose process lives as long as the ``with`` block.

    Args:
        name: ``tutorial``, ``bare``, or ``ours``, which is ``python -m src.train`` with one more callback.
        command: its overrides.
        variant: of the bare loop. Without one the loop tries all of them, and its ``note`` maps each kind to the
            fastest of that kind.
        starter: how its process is started.

    Attributes:
        note: what the loop has sent as it reached its gate.

    Raises:
        UserError: from the ``with`` statement and from :meth:`run`, where the loop has ended (the message quotes its
            last line) or does nothing for :data:`PATIENCE` seconds.
    """

    note: Any

    def __init__(self, name: str, command: Sequence[str], variant: str = "", starter: Starter = WARM) -> None:
        self.name = name
        self._variant = variant
        self._command = list(command)
        self._starter = starter

    def __enter__(self) -> Self:
        """Start the loop and wait until it has reached its gate."""
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
            self.note = self._receive()
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
        address = folder / "gate"
        if self.name != "ours":
            return ["src.benchmark.by_hand", self.name, self._variant, str(address), *self._command]
        gate = ("_target_=src.benchmark.gate.GateCallback", f"address={quoted(address)}")
        run = f"hydra.run.dir={quoted(folder / 'run')}"
        return ["src.train", *self._command, run, *(f"+callbacks.gate.{setting}" for setting in gate)]

    def _accept(self, listener: socket.socket) -> Connection:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                return Connection(listener.accept()[0].detach())
            if self._process.poll() is not None:
                raise self._ended()
        raise self._silent()

    def _receive(self) -> Any:
        try:
            if self._connection.poll(PATIENCE):
                return self._connection.recv()
        except (OSError, EOFError):
            raise self._ended() from None
        raise self._silent()

    def _ended(self) -> UserError:
        lines = [line for line in self._output.read_text(errors="replace").splitlines() if line.strip()]
        return UserError(f"the loop {self.name} has ended: {lines[-1] if lines else 'it printed nothing'}")

    def _silent(self) -> UserError:
        return UserError(f"the loop {self.name} has not answered for {PATIENCE / 60:.0f} minutes")


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
