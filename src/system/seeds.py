"""Random streams as functions of a seed and a purpose, so that nothing drawn for one disturbs another."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def derive_seed(*parts: object) -> int:
    """One 63-bit seed from several values, equal on every machine and Python run."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def random_state() -> tuple[Tensor, list[Tensor]]:
    """Where torch's streams stand, on the CPU and on each GPU that is in use."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    """Go on drawing where :func:`random_state` has looked."""
    cpu, gpus = state
    torch.set_rng_state(cpu)
    torch.cuda.set_rng_state_all(gpus)


@contextmanager
def stream(*parts: object) -> Iterator[None]:
    """Inside, torch draws from a stream that ``parts`` decide, on every device; outside, nothing has happened."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # look at no GPU for nothing
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(*parts))
        yield
