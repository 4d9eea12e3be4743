"""The terminal: less of the libraries' noise, and progress bars."""

import logging
import threading
import warnings
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from src.system.errors import disk_full

T = TypeVar("T")

QUIET = (
    ".*LeafSpec.*",  # a deprecation inside Lightning
    ".*does not have many workers.*",  # batches are gathered from one tensor: workers would only copy
    ".*exists and is not empty.*",  # a resumed run's checkpoints folder
    ".*is smaller than the logging interval.*",  # epochs are logged whatever their length
    ".*TF32 acceleration on top of oneDNN.*",  # of Intel GPUs, said when oneDNN is turned off
    ".*not supported by the model summary.*",  # it only estimates megabytes
)


def hush_libraries() -> None:
    """Drop adverts and warnings that say nothing about the run.

    Lightning advertises its makers' products through its rank-zero loggers.
    """
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    threading.excepthook = _hush_full_disk


def _hush_full_disk(raised: threading.ExceptHookArgs) -> None:
    """TensorBoard's writing thread leaves its error to the main thread too, which says what is full."""
    if raised.exc_value is None or disk_full(raised.exc_value) is None:
        threading.__excepthook__(raised)


class AboveBars(logging.StreamHandler):
    """Writes to the terminal above the progress bars that stand there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def progress(items: Iterable[T], what: str, total: int | None = None, done: int = 0) -> Iterable[T]:
    """The items, with a progress bar where there is a terminal to show it; ``total`` where they have no length.

    The bar begins after ``done`` of the total.
    """
    return tqdm(items, what, total, leave=False, disable=None, initial=done)


def duration(seconds: float) -> str:
    """``40 s``, ``12 min`` or ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
