"""Write files completely or not at all, and format their paths for a command line."""

import os
import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from src.system.errors import UserError, one_line

UNFINISHED = ".part"
MOST_FILES = 100_000  # in a run's folder


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a new temporary file beside ``path``; rename it to ``path`` when the block ends without an error.

    The temporary name is random, so no link or file in the folder is followed or overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=UNFINISHED)
    except OSError as error:
        error.filename = str(path)
        raise
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        # A failed write names no file or the temporary one. A socket's timeout is an OSError without errno.
        if error.errno is not None and error.filename in (None, name):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def refuse_links_out(folder: Path, parts: Iterable[str]) -> None:
    """Check that no link below some parts of a folder leads out of it, so that writing and removing stays inside.

    Raises:
        UserError: a link does, or there are too many files to check.
    """
    inside, seen = folder.resolve(), 0
    for part in parts:
        waiting = [folder / part]
        while waiting:
            path = waiting.pop()
            try:
                if path.is_symlink() and not path.resolve(strict=True).is_relative_to(inside):
                    raise UserError(f"{path} leads out of {folder}: take that link away")
                if path.is_dir() and not path.is_symlink():
                    waiting += path.iterdir()
            except (OSError, RuntimeError) as error:  # a circular or broken link, or an unreadable folder
                raise UserError(f"{path} cannot be followed ({one_line(error)}): take it away") from error
            if (seen := seen + 1) > MOST_FILES:
                raise UserError(f"{folder} holds more than {MOST_FILES:,} files: it is none that a run has left")


def refuse_inside(folder: Path, images: str | Path, key: str) -> None:
    """Raise a UserError if ``folder=``, to be written into, lies in a folder of images, which a key names."""
    if folder.expanduser().resolve().is_relative_to(Path(images).expanduser().resolve()):
        raise UserError(f"folder={readable(folder)} lies in {key}, where nothing is written: give another folder=")


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder that no other process writes to."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def as_typed(key: str, path: Path) -> str:
    """Format ``key=path`` for a command line, in the quotes that Hydra and the shell need."""
    return shlex.quote(f"{key}={as_value(path)}")


def as_value(path: Path) -> str:
    """Format a path as the value of an override, in Hydra's quotes if it needs them."""
    return str(path) if re.fullmatch(r"[\w./+-]+", str(path)) else quoted(path)


def quoted(path: Path) -> str:
    """Format a path as the value of an override; Hydra only treats backslashes before a quote as escapes."""
    escaped = re.sub(r"(\\*)(\'|$)", lambda m: 2 * m[1] + (r"\'" if m[2] else ""), str(path))
    return f"'{escaped}'"


def readable(name: str | Path) -> str:
    """Return a file's name with bytes that are not UTF-8 as ``\\xff``.

    Python keeps such bytes as lone surrogates, which can be neither printed nor written.
    """
    text = str(name)
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _umask() -> int:
    """Return the permissions that this process withholds from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
