"""Let one process at a time work in a folder."""

import contextlib
import fcntl
import functools
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from src.system.contents import LOCK
from src.system.errors import UserError

log = logging.getLogger(__name__)

HELD = "IMAGE_VAE_LOCKED"  # environment variable: the folder that the parent has locked for this process
PATIENCE = 0.5  # seconds; a process that only checks whether a folder is locked holds the lock for an instant


def lock(folder: Path, name: str = LOCK, patience: float | None = PATIENCE) -> IO[str] | None:
    """Lock a folder until the returned file is closed, here and in every process that has inherited it.

    Return None if the file system has no locks.

    Args:
        folder: an existing folder.
        name: the lock file; different names are independent locks.
        patience: seconds to wait for another process; None waits without limit.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: the lock file cannot be made.
    """
    until = None if patience is None else time.monotonic() + patience
    while True:
        file = open(folder / name, "a", opener=_follow_no_link)  # noqa: SIM115 (the caller closes it)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):  # else it was removed meanwhile and locks nothing
                if os.fstat(file.fileno()).st_ino == os.stat(folder / name).st_ino:
                    return file
        except BlockingIOError:
            if until is not None and time.monotonic() > until:
                file.close()
                raise
        except OSError as error:
            file.close()
            _warn_without_locks(error.strerror)
            return None
        file.close()
        time.sleep(0.05)


def _follow_no_link(path: str, flags: int) -> int:
    """Open a file in the folder itself: a link must not create a file elsewhere."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@functools.cache
def _warn_without_locks(why: str) -> None:
    """Warn once."""
    log.warning("this file system has no locks (%s): see to it that two processes never work in one folder", why)


@contextlib.contextmanager
def turn(folder: Path, name: str, waiting: str | None = None) -> Iterator[bool]:
    """Hold a lock during the block and remove its file afterwards.

    Yield whether the lock is held; it is not if the file system has no locks or the lock file cannot be made.

    Args:
        folder: an existing folder.
        name: the lock file.
        waiting: logged before waiting for another process; None does not wait.

    Raises:
        BlockingIOError: another process holds the lock, and ``waiting`` is None.
    """
    held, removable = None, True
    try:
        held = lock(folder, name, 0 if waiting is None else PATIENCE)
    except BlockingIOError:
        if waiting is None:
            raise
        log.info(waiting)
        held = lock(folder, name, None)
    except OSError:  # the folder is read-only or belongs to another user
        removable = False
    try:
        yield held is not None
    finally:
        if removable:
            with contextlib.suppress(OSError):
                (folder / name).unlink()  # while the lock is held: waiting processes notice it and make a new file
        if held is not None:
            held.close()


def lock_for_training(folder: Path) -> IO[str] | None:
    """Lock a run's folder for a training until the returned file is closed.

    Return None if the parent has locked it for this process, or if the file system has no locks.

    Raises:
        UserError: another training has locked it.
    """
    ranks = [os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")]
    if is_held_for_us(folder) or any(rank.isdecimal() and int(rank) > 0 for rank in ranks):
        return None
    try:
        return lock(folder)
    except BlockingIOError as error:
        raise UserError(
            f"another process trains in {folder}: stop it, wait for it, or choose another hydra.run.dir"
        ) from error


def is_held_for_us(folder: Path) -> bool:
    """Return whether the parent has locked the folder for this process."""
    return os.environ.get(HELD) == str(folder.resolve())


def is_locked(folder: Path) -> bool:
    """Return whether a process has locked ``folder``."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False
