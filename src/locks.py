"""One process at a time works in a folder."""

import contextlib
import fcntl
import logging
import os
import time
from pathlib import Path
from typing import IO

from src.errors import Busy
from src.files import readable

log = logging.getLogger(__name__)

LOCK = ".lock"
HELD = "IMAGE_VAE_LOCKED"  # names the folder that a process was started to work in, locked by its starter
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # where Lightning looks for a process's number
PATIENCE = 0.5  # seconds: who only looks whether a folder is locked holds its lock for an instant
_LOCKLESS: list[Path] = []  # folders that could not be locked


def lock(folder: Path, name: str = LOCK, patience: float | None = PATIENCE) -> IO[str] | None:
    """Lock a folder for as long as the file that is returned is open, here or in a process that has inherited it.

    None where the file system knows no locks, as some network disks do not: a warning says so, once a process.

    Args:
        folder: that.
        name: of the file that is locked; others stand for other things to be done in the folder.
        patience: seconds to wait for another process; None waits for as long as it takes.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: the lock's file cannot be made.
    """
    until = None if patience is None else time.monotonic() + patience
    while True:
        file = open(folder / name, "a")  # noqa: SIM115 (held by whoever asked)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):  # else it was removed meanwhile, and locks nothing
                if os.fstat(file.fileno()).st_ino == os.stat(folder / name).st_ino:
                    return file
        except BlockingIOError:
            if until is not None and time.monotonic() > until:
                file.close()
                raise
        except OSError as error:  # no locks here
            file.close()
            _warn(folder, error)
            return None
        file.close()
        time.sleep(0.05)


def _warn(folder: Path, error: OSError) -> None:
    if not _LOCKLESS:
        log.warning(
            "the disk of %s has no locks (%s): see to it that no two commands work in one folder at a time",
            readable(folder),
            error.strerror,
        )
    _LOCKLESS.append(folder)


def keep_others_out(folder: Path) -> IO[str] | None:
    """Keep other trainings out of a run's folder for as long as the file that is returned is open.

    None where that is done already, by the process that started this one or by the first of several that train
    together, or where the disk has no locks.

    Raises:
        Busy: another one is in it.
    """
    first = next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"
    if not first or os.environ.get(HELD) == str(folder.resolve()):
        return None
    try:
        return lock(folder)
    except BlockingIOError as error:
        where = readable(os.path.relpath(folder))
        raise Busy(
            f"another process trains in {where}: stop it, wait for it, or choose another hydra.run.dir"
        ) from error


def is_locked(folder: Path) -> bool:
    """Whether a process works in ``folder``."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False
