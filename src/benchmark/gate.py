"""The gate in a training loop: it lets the loop do a given number of steps and times them.

Each of the compared loops has a process of its own and waits at its gate; the benchmark opens one gate at a time.
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
    """Consecutive steps of one loop."""

    steps: int
    seconds: float
    peak_memory_mib: float  # of the process so far; of its GPU memory where it has a GPU


class Gate:
    """Count the steps of a loop, and wait for the next order after the last step of each.

    Args:
        address: the path of the socket on which the benchmark listens.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection: Connection | None = None
        self._steps = 0

    def done(self, device: torch.device) -> None:
        """Count a step on ``device``; to be called after each. The first one, which may compile, is before any order.

        Raises:
            SystemExit: when the benchmark has closed the connection.
        """
        if self._connection is None:
            client = socket.socket(socket.AF_UNIX)
            client.connect(self._address)
            self._connection, self._steps_left = Connection(client.detach()), 1
        self._steps_left -= 1
        if self._steps_left:
            return
        if device.type == "cuda":
            torch.cuda.synchronize()
        try:
            if self._steps:
                seconds, peak = time.perf_counter() - self._began, peak_memory()
                self._connection.send(Round(self._steps, seconds, peak["gpu" if device.type == "cuda" else "process"]))
            self._steps = self._steps_left = self._connection.recv()
        except (EOFError, OSError):
            raise SystemExit from None
        self._began = time.perf_counter()


class GateCallback(Callback):
    """The gate in Lightning's loop.

    Args:
        address: as in :class:`Gate`.
    """

    def __init__(self, address: str) -> None:
        self._gate = Gate(address)

    def on_train_batch_end(self, trainer: Trainer, pl_module: BaseVAE, *args: Any) -> None:
        """Count the step."""
        self._gate.done(pl_module.device)
