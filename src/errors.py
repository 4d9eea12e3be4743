"""Errors as part of the product: the one exception that means "you can mend this", and how it is reported."""

import errno
import functools
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

log = logging.getLogger(__name__)


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
INTERRUPTED = 130  # exit status of what Ctrl-C has ended
DIVERGED = 3  # exit status of a training whose loss was no longer a number


class UserError(Exception):
    """Bad input: one line that says what is wrong and what to do about it."""

    exit_status = 1


class Diverged(UserError):
    """The training is no longer made of numbers."""

    exit_status = DIVERGED


def whole_number(key: str, value: Any, at_least: int = 1) -> int:
    """``value``, if it is a whole number of at least ``at_least``.

    Raises:
        UserError: it is not; the message names ``key``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise UserError(f"{key}={value}: give a whole number of at least {at_least}")
    return value


def explain(error: BaseException) -> str | None:
    """One line for an error that the user can mend, None for one that is ours.

    Follows causes, as libraries wrap what a constructor raises.
    """
    chain = [error]
    while (
        cause := chain[-1].__cause__ or (None if chain[-1].__suppress_context__ else chain[-1].__context__)
    ) is not None:
        chain.append(cause)
    for link in chain:
        if isinstance(link, OSError) and link.errno in DISK_FULL:
            return (
                f"the disk is full ({link.filename or 'while writing'}): free some; a run resumes with ckpt_path=last"
            )
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for link in causes:
        if isinstance(link, UserError):
            return " ".join(str(link).split())  # what it quotes may have lines
        if isinstance(link, OSError) and link.filename and link.strerror:
            return f"{link.strerror}: {link.filename}"
    return _library_error(error, causes[-1])


def _library_error(error: BaseException, root: BaseException) -> str | None:
    """One line for what Hydra, OmegaConf and Lightning refuse."""
    text = " ".join(str(root).split())
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: set it on the command line"
    if "gpu backend" in text:
        return "no GPU is to be seen on this machine: choose trainer=cpu"
    if isinstance(error, InstantiationException):
        where = [line.strip().rstrip(":") for line in str(error).splitlines() if "full_key" in line or "target" in line]
        return f"{text} ({'; '.join(where)}; HYDRA_FULL_ERROR=1 shows where)"
    # Lightning says with these names that a config is impossible, such as a monitor that nobody logs.
    refused = type(root).__name__ == "MisconfigurationException" or text.startswith("Early stopping conditioned on")
    return text if refused or isinstance(error, OmegaConfBaseException) else None


def reports_user_errors(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Decorate an entry point: an error that the user can mend becomes one line and exit status 1.

    Inside a multirun it is raised on, so that the sweep records the failed job and goes on. HYDRA_FULL_ERROR=1
    shows the whole traceback instead.
    """

    @functools.wraps(task)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            return task(cfg)
        except KeyboardInterrupt:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            log.error("error: interrupted; what was finished is kept")
            sys.exit(INTERRUPTED)
        except Exception as error:
            line = explain(error)
            if line is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            log.error("error: %s", line)
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            _leave_no_empty_folder(Path(HydraConfig.get().runtime.output_dir))
            sys.exit(_exit_status(error))

    return wrapped


def _exit_status(error: BaseException | None) -> int:
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error.exit_status if error is not None else 1


def _leave_no_empty_folder(folder: Path) -> None:
    """Remove the folder of a run that never began: one that holds its log alone."""
    if folder != Path.cwd() and {path.suffix for path in folder.iterdir()} == {".log"}:
        shutil.rmtree(folder, ignore_errors=True)
