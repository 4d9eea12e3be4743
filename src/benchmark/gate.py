"""The gate in a training loop: it lets through the steps that are asked for, and says how long they took.

Loops that are compared stand in processes of their own, each at its gate; the benchmark opens one gate at a time.
"""

import socket
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from lightning import Callback, Trainer

from src.models.base import BaseVAE
from src.training.acceleration import peak_memory


class Round(NamedTuple):
    """Some steps in a row."""

    steps: int
    seconds: float
    peak_memory_mib: float  # of the process so far; where it has a GPU, on that


class Gate:
    """Counts the steps of a loop, and waits for orders when those that were asked for are done.

    Args:
        door: the path of the socket on which the benchmark waits.
        note: what the benchmark should know of this loop, such as the variant that it chose.
        gpu: whether it trains on a GPU.
    """

    def __init__(self, door: str, note: str = "", gpu: bool = False) -> None:
        self._gpu = gpu
        wire = socket.socket(socket.AF_UNIX)
        wire.connect(door)
        self._door = Connection(wire.detach())
        self._door.send(note)
        self._steps = self._left = 0
        self._since = 0.0

    def wait(self) -> None:
        """Before the first step: wait for the first order.

        Raises:
            SystemExit: nobody asks any more.
        """
        self._exchange()

    def step(self) -> None:
        """After each step."""
        self._left -= 1
        if self._left == 0:
            if self._gpu:
                torch.cuda.synchronize()
            seconds, peak = time.perf_counter() - self._since, peak_memory()
            self._exchange(Round(self._steps, seconds, peak["gpu" if self._gpu else "process"]))

    def _exchange(self, done: Round | None = None) -> None:
        try:
            if done is not None:
                self._door.send(done)
            self._steps = self._left = self._door.recv()
        except (EOFError, OSError):
            raise SystemExit from None
        self._since = time.perf_counter()


class GateCallback(Callback):
    """The gate in Lightning's loop.

    Args:
        door: as in :class:`Gate`.
    """

    def __init__(self, door: str) -> None:
        self._path = door

    def on_train_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """All is set up: steps may be asked for."""
        self._gate = Gate(self._path, gpu=pl_module.device.type == "cuda")
        self._gate.wait()

    def on_train_batch_end(self, trainer: Trainer, pl_module: BaseVAE, *args: Any) -> None:
        """One more."""
        self._gate.step()
