"""Errors as part of the product: the one exception that means "you can mend this", and what it says."""

import errno
import re

from hydra.errors import InstantiationException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# torch.OutOfMemoryError is a RuntimeError, and so is what is raised for the machine's memory or a library's.
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", re.IGNORECASE)
DIVERGED = 3  # exit status of a training whose loss was no longer a number


class UserError(Exception):
    """Bad input: one line that says what is wrong and what to do about it."""

    exit_status = 1


class Diverged(UserError):
    """The training is no longer made of numbers."""

    exit_status = DIVERGED


def one_line(error: BaseException) -> str:
    """What an error says, without its line breaks; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def explain(error: BaseException) -> str | None:
    """One line for an error that the user can mend, None for one that is ours.

    Follows causes, as libraries wrap what a constructor raises.
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
        return (
            f"{full}: lower data.batch_size or the model's size; in a sweep run fewer points at a time "
            "(hydra.launcher.slots, per_gpu); evaluate and explore take device=cpu"
        )
    for link in causes:
        if isinstance(link, OSError) and link.filename and link.strerror:
            return f"{link.strerror}: {link.filename}"
    return _library_error(error, causes[-1])


def disk_full(error: BaseException) -> str | None:
    """What to say of an error that a full disk has caused, with the file that was written; None for any other."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in DISK_FULL:
            return f"the disk is full ({link.filename or 'while writing'})"
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None


def memory_full(error: BaseException) -> str | None:
    """What to say of an error that came of too little memory, of a GPU or of the machine; None for any other."""
    link: BaseException | None = error
    while link is not None:
        text = one_line(link)
        if isinstance(link, MemoryError) or (isinstance(link, RuntimeError) and NO_MEMORY.search(text)):
            where = "the GPU's memory" if re.search("CUDA|CUBLAS|CUDNN", text) else "memory"
            wanted = re.search(r"allocate ([\d.]+ ?\w+)", text)
            return f"{where} is full" + (f" ({wanted[1]} more were asked for)" if wanted else "")
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None


def _library_error(error: BaseException, root: BaseException) -> str | None:
    """One line for what Hydra, OmegaConf and Lightning refuse."""
    text = one_line(root)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: set it on the command line"
    if "gpu backend" in text:
        return "no GPU is to be seen on this machine: choose trainer=cpu"
    if isinstance(error, InstantiationException):
        key = re.search(r"full_key: (\S+)", str(error))
        if absent := re.search(r"Error locating target '([^']+)'", str(error)):
            return f"{key[1] if key else ''}._target_={absent[1]}: there is no such class"
        return f"{key[1] if key else 'the config'}: {text} (HYDRA_FULL_ERROR=1 shows where)"
    # Lightning says with these names that a config is impossible, such as a monitor that nobody logs.
    refused = type(root).__name__ == "MisconfigurationException" or text.startswith("Early stopping conditioned on")
    return text if refused or isinstance(error, OmegaConfBaseException) else None
