"""Terminal output: fewer messages of libraries, and progress bars."""

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
    ".*does not have many workers.*",  # batches are gathered from one tensor, so workers would only copy
    ".*exists and is not empty.*",  # a resumed run's checkpoints folder
    ".*is smaller than the logging interval.*",  # every epoch is logged
    ".*TF32 acceleration on top of oneDNN.*",  # about Intel GPUs, printed when oneDNN is turned off
    ".*TensorFloat32 tensor cores for float32.*",  # likelihoods and evaluation are in full float32
    ".*not supported by the model summary.*",  # the summary only estimates megabytes
)


def hush_libraries() -> None:
    """Silence adverts and warnings that say nothing about the run; Lightning advertises in its rank-zero loggers."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It says which GPU trains, twice; and the compiler's search for CUDA where no GPU is.
    for name in ("lightning.pytorch.accelerators.cuda", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    threading.excepthook = _hush_full_disk


def _hush_full_disk(raised: threading.ExceptHookArgs) -> None:
    """Print no traceback in TensorBoard's writer thread: the main thread gets the error too and reports it."""
    if raised.exc_value is None or disk_full(raised.exc_value) is None:
        threading.__excepthook__(raised)


class AboveBars(logging.StreamHandler):
    """Write log lines above the progress bars on the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def progress(items: Iterable[T], what: str, total: int | None = None, done: int = 0) -> Iterable[T]:
    """Iterate over the items with a progress bar if there is a terminal.

    ``total`` is for items without a length; the bar begins after ``done`` of it.
    """
    return tqdm(items, what, total, leave=False, disable=None, initial=done)


def duration(seconds: float) -> str:
    """Format seconds as ``40 s``, ``12 min`` or ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
