"""A training loop in a process of its own, and the gate it waits at."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Self

from src.benchmarking.gate import Round
from src.errors import UserError

LOOPS = ("tutorial", "bare", "ours")
PATIENCE = 900.0  # seconds a loop may take to start, or for a round


class Loop:
    """One of ``LOOPS``; its process lives as long as the ``with`` block, and several start side by side.

    Args:
        name: ``ours`` is ``python -m src.train`` with one more callback.
        command: its overrides.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._command = list(command)
        self._door: Connection | None = None
        self._note = ""

    def __enter__(self) -> Self:
        """Start it."""
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-"))
            address = f"{folder}/gate"
            program = ["src.benchmarking.written", self.name, address, *self._command]
            if self.name == "ours":
                gate = ("_target_=src.benchmarking.gate.GateCallback", f"address={address}")
                gates = [f"+callbacks.gate.{setting}" for setting in gate]
                program = ["src.train", *self._command, f"hydra.run.dir={folder}/run", *gates]
            self._listener = stack.enter_context(Listener(address, "AF_UNIX"))
            self._output = Path(folder) / "output"
            output = stack.enter_context(self._output.open("w"))
            self._process = subprocess.Popen(
                [sys.executable, "-m", *program], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            stack.callback(self._process.wait)
            stack.callback(self._process.kill)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End it, whatever it does."""
        self._stack.close()

    def run(self, steps: int) -> Round:
        """Let it do some steps; the first call waits until it stands at its gate.

        Raises:
            UserError: it has ended; the message quotes its last line.
        """
        try:
            door = self._enter()
            door.send(steps)
            if door.poll(PATIENCE):
                return door.recv()
        except (OSError, EOFError):
            pass
        lines = [line for line in self._output.read_text(errors="replace").splitlines() if line.strip()]
        raise UserError(f"the loop {self.name} has ended: {lines[-1] if lines else 'it said nothing'}")

    @property
    def note(self) -> str:
        """What it says of itself, such as the variant that the bare loop chose."""
        self._enter()
        return self._note

    def _enter(self) -> Connection:
        if self._door is None:
            deadline = time.monotonic() + PATIENCE
            self._listener._listener._socket.settimeout(1.0)  # multiprocessing itself waits for ever
            while self._door is None:
                try:
                    self._door = self._listener.accept()
                except TimeoutError:
                    if time.monotonic() > deadline or self._process.poll() is not None:
                        raise
            self._note = self._door.recv()
        return self._door
