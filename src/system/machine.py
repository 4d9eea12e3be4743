"""Properties of the machine, and settings of the process."""

import ctypes
import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

from src.system.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h


def keep_pages() -> bool:
    """Tell glibc's allocator to keep freed pages; return whether it accepted that.

    By default glibc returns every freed block above 32 MB to the kernel, so that each training step page-faults its
    activations in again. Peak memory is the same; memory once used stays with the process.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries do not have it
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def hide_missing_gpus() -> None:
    """Hide all GPUs from torch if there is none, so that no optimizer step looks for one.

    torch's optimizers ask at each step whether there is a GPU, and Lightning has torch answer by opening NVIDIA's
    management library (https://github.com/Lightning-AI/pytorch-lightning/pull/15110): 0.05 to 0.6 ms each time.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def multiplies_bfloat16() -> bool:
    """Return whether this processor has bfloat16 instructions; without them bfloat16 is emulated and slower."""
    try:
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.group(1).split())


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_processes(devices: Any) -> None:
    """Check that each process of a CPU training has a processor; two processes are always allowed, for trainer=ddp.

    Args:
        devices: ``trainer.devices``; Lightning checks what is not a number.

    Raises:
        UserError: there are fewer processors.
    """
    here = max(2, processors())
    if str(devices).isdecimal() and int(devices) > here:
        raise UserError(f"trainer.devices={devices} processes on a CPU: this machine has processors for {here}")


def peak_process_memory() -> float:
    """Return the peak resident memory of this process, in MiB.

    A process forked from a warm server counts some 370 MiB less than a new one: it has not touched all the libraries.
    Linux's ``ru_maxrss`` is not used because it starts at the parent's value.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(found.group(1)) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def check_precision(precision: int | str) -> None:
    """Check that a CPU can train in a precision.

    Raises:
        UserError: it is float16, which Lightning would replace by bfloat16
            (https://github.com/Lightning-AI/pytorch-lightning/pull/10033).
    """
    if precision in (16, "16", "16-mixed"):
        raise UserError(f"trainer.precision={precision} is for GPUs: choose bf16-mixed or 32-true")
