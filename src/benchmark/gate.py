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
        note: what the benchmark should know of this loop, such as the fastest variants that it found.
        gpu: whether the loop trains on a GPU.
    """

    def __init__(self, address: str, note: Any = None, gpu: bool = False) -> None:
        self._gpu = gpu
        client = socket.socket(socket.AF_UNIX)
        client.connect(address)
        self._connection = Connection(client.detach())
        self._send_and_wait(note)

    def step(self) -> None:
        """Count a step. To be called after each.

        Raises:
            SystemExit: when the benchmark has closed the connection.
        """
        self._steps_left -= 1
        if self._steps_left == 0:
            if self._gpu:
                torch.cuda.synchronize()
            seconds, peak = time.perf_counter() - self._began, peak_memory()
            self._send_and_wait(Round(self._steps, seconds, peak["gpu" if self._gpu else "process"]))

    def _send_and_wait(self, message: Any) -> None:
        try:
            self._connection.send(message)
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
        self._address = address

    def on_train_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Wait for the first order: everything is set up."""
        self._gate = Gate(self._address, gpu=pl_module.device.type == "cuda")

    def on_train_batch_end(self, trainer: Trainer, pl_module: BaseVAE, *args: Any) -> None:
        """Count the step."""
        self._gate.step()
