"""What a part of the benchmark returns."""

import time
from collections.abc import Callable
from typing import NamedTuple


class Measurement(NamedTuple):
    """What was measured, and how much it was."""

    what: str
    value: float
    unit: str


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
