"""One process at a time works in a folder."""

import fcntl
import os
from pathlib import Path
from typing import IO

LOCK = ".lock"
HELD = "LOCKED_FOLDER"  # variable that names the folder which a process was started to work in, locked by its starter


def lock(folder: Path, name: str = LOCK) -> IO[str] | None:
    """Lock a folder for as long as the file that is returned is open, here or in a process that has inherited it.

    None where the process that started this one has locked it for this one, and where the file system knows no locks.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: the lock's file cannot be made.
    """
    if os.environ.get(HELD) == str(folder.resolve()) and name == LOCK:
        return None
    file = open(folder / name, "a")  # noqa: SIM115 (held by whoever asked)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:  # no locks here
        file.close()
        return None
    return file


def is_locked(folder: Path) -> bool:
    """Whether a process works in ``folder``."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False
