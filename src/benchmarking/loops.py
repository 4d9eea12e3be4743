"""A training loop in a process of its own, and the gate it waits at."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Self

from src.benchmarking.gate import Round
from src.errors import UserError
from src.files import quoted

LOOPS = ("tutorial", "bare", "ours")
PATIENCE = 900.0  # seconds a loop may take to start, or for a round


class Loop:
    """One of ``LOOPS``; its process lives as long as the ``with`` block, and several start side by side.

    Args:
        name: ``ours`` is ``python -m src.train`` with one more callback.
        command: its overrides.
        variant: of the bare loop; where it is empty, that tries all and notes which is the fastest.
    """

    def __init__(self, name: str, command: Sequence[str], variant: str = "") -> None:
        self.name = name
        self._variant = variant
        self._command = list(command)
        self._note: str | None = None

    def __enter__(self) -> Self:
        """Start it."""
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-"))
            self._output = Path(folder) / "output"
            output = stack.enter_context(self._output.open("w"))
            self._door, its_door = Pipe()
            stack.callback(self._door.close)
            with its_door:  # once the process has it, its end is the end of the connection
                number = its_door.fileno()
                self._process = subprocess.Popen(
                    [sys.executable, "-m", *self._program(folder, number)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[number],
                )
            stack.callback(self._process.wait)
            stack.callback(self._process.kill)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End it, whatever it does."""
        self._stack.close()

    @property
    def note(self) -> str:
        """What it says of itself as it reaches its gate, such as the variant that the bare loop chose.

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

    def _program(self, folder: str, door: int) -> list[str]:
        if self.name != "ours":
            return ["src.benchmarking.written", self.name, self._variant, str(door), *self._command]
        gate = ("_target_=src.benchmarking.gate.GateCallback", f"door={door}")
        gates = [f"+callbacks.gate.{setting}" for setting in gate]
        return ["src.train", *self._command, f"hydra.run.dir={quoted(Path(folder) / 'run')}", *gates]

    def _hear(self, order: int | None = None) -> Any:
        """Its next word, after an order if there is one."""
        try:
            if order is not None:
                self._door.send(order)
            if self._door.poll(PATIENCE):
                return self._door.recv()
        except (OSError, EOFError):
            lines = [line for line in self._output.read_text(errors="replace").splitlines() if line.strip()]
            last = lines[-1] if lines else "it said nothing"
            raise UserError(f"the loop {self.name} has ended: {last}") from None
        raise UserError(f"the loop {self.name} has said nothing for {PATIENCE / 60:.0f} minutes")
