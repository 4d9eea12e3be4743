"""One process at a time works in a folder."""

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

HELD = "IMAGE_VAE_LOCKED"  # names the folder that a process was started to work in, locked by its starter
PATIENCE = 0.5  # seconds: who only looks whether a folder is locked holds its lock for an instant


def lock(folder: Path, name: str = LOCK, patience: float | None = PATIENCE) -> IO[str] | None:
    """Lock a folder for as long as the file that is returned is open, here or in a process that has inherited it.

    None where the file system knows no locks.

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
        file = open(folder / name, "a", opener=_follow_no_link)  # noqa: SIM115 (held by whoever asked)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):  # else it was removed meanwhile, and locks nothing
                if os.fstat(file.fileno()).st_ino == os.stat(folder / name).st_ino:
                    return file
        except BlockingIOError:
            if until is not None and time.monotonic() > until:
                file.close()
                raise
        except OSError as error:
            file.close()
            _say_that_there_are_none(error.strerror)
            return None
        file.close()
        time.sleep(0.05)


def _follow_no_link(path: str, flags: int) -> int:
    """Open what a folder holds itself: a file elsewhere must not come to be."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@functools.cache
def _say_that_there_are_none(why: str) -> None:
    """Once is enough."""
    log.warning("this file system has no locks (%s): see to it that two processes never work in one folder", why)


@contextlib.contextmanager
def turn(folder: Path, name: str, waiting: str | None = None) -> Iterator[bool]:
    """Do what one process at a time does in a folder; the lock's file is gone afterwards.

    Yields whether no other process is at it: that cannot be known where the file system knows no locks, or where the
    lock's file cannot be made.

    Args:
        folder: that; it exists.
        name: of the lock's file.
        waiting: what is logged before waiting for another process; without it nobody waits.

    Raises:
        BlockingIOError: another process is at it, and ``waiting`` is None.
    """
    held, ours = None, True
    try:
        held = lock(folder, name, 0 if waiting is None else PATIENCE)
    except BlockingIOError:
        if waiting is None:
            raise
        log.info(waiting)
        held = lock(folder, name, None)
    except OSError:  # the folder is read-only, or another user's
        ours = False
    try:
        yield held is not None
    finally:
        if ours:
            with contextlib.suppress(OSError):
                (folder / name).unlink()  # while it is held: who waits for it sees that, and makes a new one
        if held is not None:
            held.close()


def lock_for_training(folder: Path) -> IO[str] | None:
    """Keep other trainings out of a run's folder for as long as the file that is returned is open.

    None where the process that started this one has locked it, or the file system knows no locks.

    Raises:
        UserError: another training is in it.
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
    """Whether the process that started this one has locked the folder for it."""
    return os.environ.get(HELD) == str(folder.resolve())


def is_locked(folder: Path) -> bool:
    """Whether a process works in ``folder``."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False
