"""What the machine can do, and how it is told to do it."""

import ctypes
import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

from src.system.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names and numbers of malloc.h


def keep_pages() -> bool:
    """Tell the allocator to keep the pages it has; returns whether there is one that listens (glibc's).

    By itself glibc gives every block above 32 MB back to the kernel when it is freed, so each training step faults
    its activations in again, page by page. Memory in use is the same; memory once used stays with the process.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries do not have it
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products; elsewhere they are emulated, and slower."""
    try:
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.group(1).split())


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_processes(devices: Any) -> None:
    """See that each process of a training on the CPU has a processor; the two of trainer=ddp may be tried anywhere.

    Args:
        devices: ``trainer.devices``; of what is no number, Lightning says whether it can be.

    Raises:
        UserError: there are fewer processors.
    """
    here = max(2, processors())
    if str(devices).isdecimal() and int(devices) > here:
        raise UserError(f"trainer.devices={devices} processes on a CPU: this machine has processors for {here}")


def peak_process_memory() -> float:
    """Largest memory use of this process so far, in MiB: of what it has touched.

    A process forked from a warm one has not touched all the libraries' code: some 370 MiB less than one started anew.
    Not Linux's ``ru_maxrss``: that of a new process begins at what the process had used that started it.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(found.group(1)) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def check_precision(precision: int | str) -> None:
    """See that a CPU can train in a precision.

    Raises:
        UserError: it is float16, in whose place Lightning would take bfloat16 there.
    """
    if precision in (16, "16", "16-mixed"):
        raise UserError(f"trainer.precision={precision} is for GPUs: choose bf16-mixed or 32-true")
