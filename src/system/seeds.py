"""Random streams that depend only on a seed and a purpose, so that they do not influence each other."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed from several values, equal on every machine and in every run of Python."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def random_state() -> tuple[Tensor, list[Tensor]]:
    """Return the states of torch's generators, on the CPU and on each GPU if CUDA is initialized."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    """Restore what :func:`random_state` has returned."""
    cpu, gpus = state
    torch.set_rng_state(cpu)
    torch.cuda.set_rng_state_all(gpus)


@contextmanager
def stream(*parts: object) -> Iterator[None]:
    """Seed torch from ``parts`` on every device during the block, and restore its state afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # do not initialize CUDA
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(*parts))
        yield
