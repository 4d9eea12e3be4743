"""Errors as part of the product: the one exception that means "you can mend this", and what it says."""

import errno
import re
from collections.abc import Iterator

from hydra.errors import InstantiationException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
DIVERGED = 3  # exit status of a training whose loss was no longer a number
# How torch, CUDA, cuDNN, cuBLAS and C++ say that memory is full, where they do not say it with a class of its own.
# oneDNN's last words are of its scratch memory; a layer that it does not know ends in "... a primitive descriptor".
MEMORY_FULL = re.compile(
    r"out of memory|can(no|')t allocate memory|failed to map segment|(CUDNN|CUBLAS)_STATUS_ALLOC_FAILED|bad_alloc"
    r"|could not create a primitive(?! descriptor)",
    re.I,
)
# What each command can do with less of it.
LESS_MEMORY = {
    "train": "lower data.batch_size or the size of the model; in a sweep hydra.launcher.per_gpu or slots",
    "evaluate": "lower samples.images and representation.train_images, or name fewer parts=",
    "explore": "name fewer figures= at a time, or fewer pictures of your own in images=",
    "benchmark": "name smaller experiments, or lower data.batch_size in overrides",
    "report": "report a part of the sweep's folder at a time",
}
TOO_LARGE = "the model's weights are too large, train it with a smaller optimizer.lr"


class UserError(Exception):
    """Bad input: one line that says what is wrong and what to do about it."""

    exit_status = 1


class Diverged(UserError):
    """The training is no longer made of numbers."""

    exit_status = DIVERGED


def one_line(error: BaseException) -> str:
    """What an error says, without its line breaks; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def explain(error: BaseException, command: str = "train") -> str | None:
    """One line for an error that the user can mend, None for one that is ours.

    Follows causes, as libraries wrap what a constructor raises. ``command`` is the one that failed: what needs less
    memory is another setting in each.
    """
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for link in causes:
        if isinstance(link, UserError):
            return one_line(link)
    if (full := disk_full(error)) is not None:
        return f"{full}: free some, and try again"
    if (full := memory_full(error)) is not None:
        device = ", or device=cpu" if "GPU" in full and command in ("evaluate", "explore", "benchmark") else ""
        return f"{full}: {LESS_MEMORY[command]}{device}"
    for link in causes:
        if isinstance(link, OSError) and link.filename and link.strerror:
            return f"{link.strerror}: {link.filename}"
    return _library_error(error, causes[-1])


def disk_full(error: BaseException) -> str | None:
    """What to say of an error that a full disk has caused, with the file that was written; None for any other."""
    for link in _links(error):
        if isinstance(link, OSError) and link.errno in DISK_FULL:
            return f"the disk is full ({link.filename or 'while writing'})"
    return None


def memory_full(error: BaseException) -> str | None:
    """What to say of an error that full memory has caused, with what was asked for; None for any other."""
    for link in _links(error):
        system = isinstance(link, MemoryError) or (isinstance(link, OSError) and link.errno == errno.ENOMEM)
        text = one_line(link)
        if system or (isinstance(link, RuntimeError | ImportError) and MEMORY_FULL.search(text)):
            where = "the GPU's memory" if re.search("CUDA|CUDNN|CUBLAS", text, re.I) else "the memory"
            asked = re.search(r"allocate (\d[\d.]*) ?(bytes|[KMGTPE]?i?B)\b", text)
            return f"{where} is full" + (f" ({_size(float(asked[1]), asked[2])} more were asked for)" if asked else "")
    return None


def _size(number: float, unit: str) -> str:
    """``4000000000 bytes`` as ``3.73 GiB``; other units stay."""
    if unit == "bytes":
        for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
            if number < 1024:
                break
            number, unit = number / 1024, larger
    return f"{number:.4g} {unit}"


def _links(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that have led to it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _library_error(error: BaseException, root: BaseException) -> str | None:
    """One line for what Hydra, OmegaConf and Lightning refuse."""
    text = one_line(root)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: set it on the command line"
    if "gpu backend" in text:
        return "no GPU is to be seen on this machine: choose trainer=cpu"
    if isinstance(error, InstantiationException):
        key = re.search(r"full_key: (\S+)", str(error))
        if "is blocklisted" in text:
            return f"{key[1] if key else 'the config'}: {text.partition(' is blocklisted')[0]} may not be called"
        if absent := re.search(r"Error locating target '([^']+)'", str(error)):
            return f"{key[1] if key else ''}._target_={absent[1]}: there is no such class"
        return f"{key[1] if key else 'the config'}: {text} (HYDRA_FULL_ERROR=1 shows where)"
    # Lightning says with these names that a config is impossible, such as a monitor that nobody logs.
    refused = type(root).__name__ == "MisconfigurationException" or text.startswith("Early stopping conditioned on")
    return text if refused or isinstance(error, OmegaConfBaseException) else None
