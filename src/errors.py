"""Errors as part of the product: the one exception that means "you can mend this", and how it is reported."""

import errno
import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

log = logging.getLogger(__name__)


class UserError(Exception):
    """Bad input: one line that says what is wrong and what to do about it."""


def explain(error: BaseException) -> str | None:
    """One line for an error that the user can mend, None for one that is ours."""
    chain, cause = [], error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"the disk is full ({link.filename or 'while writing'}): free some; a run resumes with ckpt_path=last"
            )
    if isinstance(error, InstantiationException | OmegaConfBaseException):
        if "gpu backend" in str(error):
            return "no GPU is to be seen on this machine: choose trainer=cpu"
        culprit = chain[-1] if isinstance(error, InstantiationException) else error
        where = [line.strip() for line in str(error).splitlines() if "full_key" in line or "target" in line]
        return " ".join(str(culprit).split("\n")[:1] + [f"({w.rstrip(':')})" for w in where[:1]])
    return None


def reports_user_errors(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Decorate an entry point: an error that the user can mend becomes one line and exit status 1.

    Inside a multirun it is raised on, so that the sweep records the failed job and goes on. HYDRA_FULL_ERROR=1
    shows the whole traceback instead.
    """

    @functools.wraps(task)
    def wrapped(cfg: DictConfig) -> Any:
        try:
            return task(cfg)
        except Exception as error:
            line = explain(error)
            if line is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            log.error("error: %s", line)
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            sys.exit(1)

    return wrapped
