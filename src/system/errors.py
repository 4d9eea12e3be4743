"""Errors that the user can fix, and how to recognise a full disk and full memory. Import nothing of ours."""

import errno
import re
from collections.abc import Iterator

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
DIVERGED = 3  # exit status of a training whose loss is no longer finite
# The messages with which torch, CUDA, cuDNN, cuBLAS and C++ report full memory without an exception class of its own.
# "could not create a primitive" is oneDNN's, when its scratch memory does not fit; the same words followed by
# "descriptor" are about a layer that oneDNN does not support.
MEMORY_FULL = re.compile(
    r"out of memory|can(no|')t allocate memory|failed to map segment|(CUDNN|CUBLAS)_STATUS_ALLOC_FAILED|bad_alloc"
    r"|could not create a primitive(?! descriptor)",
    re.I,
)
TOO_LARGE = "the model's weights are too large, train it with a smaller optimizer.lr"


class UserError(Exception):
    """Report bad input in one line that says what is wrong and what to do about it."""

    exit_status = 1


class NotApplicable(UserError):
    """Report that this model or data cannot have a figure or a picture, and why; the other ones can still be had."""


class Diverged(UserError):
    """Report that the loss or the weights of a training are no longer finite."""

    exit_status = DIVERGED


def one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks, or the name of its class if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and then, one after the other, the errors that led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def disk_full(error: BaseException) -> str | None:
    """Return a message with the file's name if a full disk caused this error, else None."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            return f"the disk is full ({cause.filename or 'while writing'})"
    return None


def memory_full(error: BaseException) -> str | None:
    """Return a message with the size of the request if full memory caused this error, else None."""
    for cause in causes(error):
        from_system = isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        text = one_line(cause)
        if from_system or (isinstance(cause, RuntimeError | ImportError) and MEMORY_FULL.search(text)):
            where = "the GPU's memory" if re.search("CUDA|CUDNN|CUBLAS", text, re.I) else "the memory"
            request = re.search(r"allocate (\d[\d.]*) ?(bytes|[KMGTPE]?i?B)\b", text)
            size = f" ({_size(float(request[1]), request[2])} more were asked for)" if request else ""
            return f"{where} is full{size}"
    return None


def _size(number: float, unit: str) -> str:
    """Format ``4000000000 bytes`` as ``3.73 GiB``; keep other units."""
    if unit == "bytes":
        for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
            if number < 1024:
                break
            number, unit = number / 1024, larger
    return f"{number:.4g} {unit}"
