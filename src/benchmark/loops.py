"""A training loop in a process of its own, and the gate it waits at."""

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

# Kinds of the bare loop and what their variants' names end with; the last captures the compiled step in a CUDA graph.
BARE = {"eager": "", "compiled": ", compiled", "graph": ", CUDA graph"}
PATIENCE = 900.0  # seconds a loop may take to start, or for a round
LOOK_EVERY = 0.2  # seconds
# All that is measured runs in a process of its own that has imported the same: but for starting, which starts anew.
WARM = forking([*TRAINING, "src.benchmark.parts", "src.benchmark.written"])


class Loop:
    """A training loop; its process lives as long as the ``with`` block, and several start side by side.

    Args:
        name: ``tutorial``, ``bare``, or ``ours``, which is ``python -m src.train`` with one more callback.
        command: its overrides.
        variant: of the bare loop; where it is empty, that tries all and notes which is the fastest of each kind.
        starter: how its process is started.
    """

    def __init__(self, name: str, command: Sequence[str], variant: str = "", starter: Starter = WARM) -> None:
        self.name = name
        self._variant = variant
        self._command = list(command)
        self._starter = starter
        self._door: Connection | None = None
        self._note: Any = None

    def __enter__(self) -> Self:
        """Start it."""
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-"))
            self._output = Path(folder) / "output"
            self._listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._listener.bind(door := f"{folder}/door")
            self._listener.listen(1)
            self._listener.settimeout(LOOK_EVERY)
            module, *words = self._program(folder, door)
            with self._output.open("w") as output:
                self._process = self._starter.start(module, words, os.environ, output)
            stack.callback(_kill, self._process)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End it, whatever it does."""
        if self._door is not None:
            self._door.close()
        self._stack.close()

    @property
    def note(self) -> Any:
        """What it says of itself as it reaches its gate, such as the variants that the bare loop chose.

        Raises:
            UserError: as in :meth:`run`.
        """
        if self._note is None:
            self._note = self._hear()
        return self._note

    def run(self, steps: int) -> Round:
        """Let it do some steps; the first call waits until it stands at its gate.

        Raises:
            UserError: it has ended, and the message quotes its last line; or it does not end.
        """
        _ = self.note
        return self._hear(steps)

    def _program(self, folder: str, door: str) -> list[str]:
        if self.name != "ours":
            return ["src.benchmark.written", self.name, self._variant, door, *self._command]
        gate = ("_target_=src.benchmark.gate.GateCallback", f"door={quoted(Path(door))}")
        gates = [f"+callbacks.gate.{setting}" for setting in gate]
        return ["src.train", *self._command, f"hydra.run.dir={quoted(Path(folder) / 'run')}", *gates]

    def _hear(self, order: int | None = None) -> Any:
        """Its next word, after an order if there is one."""
        try:
            self._door = self._door or self._opened()
            if order is not None:
                self._door.send(order)
            if self._door.poll(PATIENCE):
                return self._door.recv()
        except (OSError, EOFError):
            lines = [line for line in self._output.read_text(errors="replace").splitlines() if line.strip()]
            last = lines[-1] if lines else "it said nothing"
            raise UserError(f"the loop {self.name} has ended: {last}") from None
        raise UserError(f"the loop {self.name} has said nothing for {PATIENCE / 60:.0f} minutes")

    def _opened(self) -> Connection:
        """Its end of the door, once it stands there.

        Raises:
            EOFError: it has ended.
            OSError: it does not come.
        """
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                return Connection(self._listener.accept()[0].detach())
            if self._process.poll() is not None:
                raise EOFError
        raise OSError("it does not reach its gate")


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
