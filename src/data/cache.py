"""The cache's folders: images.npy, digests.npy, and index.json with all else. Each is there whole or not at all."""

import contextlib
import errno
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.data.decoding import Decoded, Found, decode_all
from src.data.splits import DIGEST, content_digest
from src.system.files import readable, whole_file
from src.system.locks import turn

log = logging.getLogger(__name__)

TIMES_KEPT = 16  # copies of a folder that a cache remembers
NO_FALLOCATE = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)  # said by some network file systems
DAMAGED = (None, errno.ENOENT, errno.EISDIR, errno.ENOTDIR)  # said of files that are not what a cache holds
ZEROS = bytes(2**20)
DECODING, LOCK = ".decoding-", ".lock"  # around the name of a cache: what is decoded into, and by whom
DAY = 86_400  # seconds after which what may be at work is taken for left behind, where the file system knows no locks


class Store(NamedTuple):
    """Decoded files, in the order they were listed."""

    images: Tensor  # uint8 [N, C, S, S], memory-mapped; black where a file could not be decoded
    digests: list[bytes]  # of each file's bytes
    found: Found


def short_hash(*data: bytes | np.ndarray) -> str:
    """16 hex digits that are equal for equal content."""
    digest = blake2b(digest_size=8)
    for some in data:
        digest.update(some)
    return digest.hexdigest()


def version(folder: Path) -> tuple[int, int] | None:
    """What changes when the cache in a folder does; None where there is none."""
    try:
        fact = os.stat(folder / "index.json")
    except OSError:
        return None
    return fact.st_ino, fact.st_mtime_ns


def read(folder: Path, shape: tuple[int, ...]) -> tuple[Store | None, list[str]]:
    """A cache and the times of the files that it is known to be of; None where there is none or it is damaged."""
    if not folder.exists():
        return None, []
    try:
        index = json.loads((folder / "index.json").read_text())
        images = np.load(folder / "images.npy", mmap_mode="c")
        digests = np.load(folder / "digests.npy")
        if index["sum"] != _sum(digests, index):
            raise ValueError("index.json or digests.npy is not what was written")
        found = Found(**{**index["found"], "bad": {int(i): str(why) for i, why in index["found"]["bad"].items()}})
        if (images.shape, images.dtype, digests.shape) != (shape, np.uint8, (shape[0], DIGEST)):
            raise ValueError(f"{images.shape} {images.dtype} and {len(digests)} digests in place of {shape} uint8")
        content = digests.tobytes()
        each = [content[start : start + DIGEST] for start in range(0, len(content), DIGEST)]
        return Store(torch.from_numpy(images), each, found), [*index["times"]]
    except MemoryError:
        raise
    except Exception as error:  # whatever reading a damaged file raises
        if isinstance(error, OSError) and error.errno not in DAMAGED:  # a disk or a network that fails
            raise
        log.warning("the image cache %s is damaged (%s): the images are decoded anew", readable(folder), error)
        return None, []


def _sum(digests: np.ndarray, index: dict[str, Any]) -> str:
    return short_hash(np.ascontiguousarray(digests), json.dumps(index["found"]).encode())


def turn_to_build(folder: Path, waiting: str) -> contextlib.AbstractContextManager[bool]:
    """Let one process at a time make a cache, as :func:`src.system.locks.turn` does; the folder around it is made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return turn(folder.parent, f"{DECODING}{folder.name}{LOCK}", waiting)


def build(
    folder: Path,
    paths: Sequence[str],
    shape: tuple[int, ...],
    times: str,
    refuse: Callable[[int, str], None],
    alone: bool,
) -> None:
    """Decode into a temporary folder, then rename it.

    Args:
        folder: the cache's.
        paths: the files.
        shape: ``[N, C, S, S]``.
        times: of the files, as a cache remembers them.
        refuse: as for :func:`src.data.decoding.decode_all`.
        alone: whether no other process makes this cache now.
    """
    _, channels, size, _ = shape
    replace = folder.exists()  # damaged, or of other files
    _remove_left(folder.parent)
    temporary = folder.parent / f"{DECODING}{folder.name}"
    if alone:
        shutil.rmtree(temporary, ignore_errors=True)  # by a process that was killed
        temporary.mkdir()
    else:
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{temporary.name}-"))
    try:
        new = temporary / "new"
        new.mkdir()
        array = np.lib.format.open_memmap(new / "images.npy", "w+", np.uint8, shape)
        _claim(new / "images.npy", array.offset)
        digests = np.zeros((len(paths), DIGEST), np.uint8)

        def take(i: int, decoded: Decoded) -> None:
            array[i], digests[i] = decoded.pixels, np.frombuffer(decoded.digest, np.uint8)

        found = decode_all(paths, size, channels, take, refuse)
        for i in found.bad:  # they are like no other
            digests[i] = np.frombuffer(content_digest(os.fsencode(paths[i])), np.uint8)
        array.flush()
        np.save(new / "digests.npy", digests)
        index = {"found": found._asdict(), "times": [times]}
        (new / "index.json").write_text(json.dumps({**index, "sum": _sum(digests, index)}))
        if replace:
            with contextlib.suppress(FileNotFoundError):  # another process has just done that
                folder.rename(temporary / "old")
        try:
            new.rename(folder)
        except OSError:
            if not folder.exists():  # else another process has just decoded the same files
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_left(cache_dir: Path) -> None:
    """Remove what processes that were killed have left of other caches: nobody has its lock."""
    for left in cache_dir.glob(f"{DECODING}*"):
        key = left.name.removesuffix(LOCK)
        with contextlib.suppress(FileNotFoundError, BlockingIOError), turn(cache_dir, f"{key}{LOCK}") as alone:
            if alone or time.time() - (cache_dir / key).stat().st_mtime > DAY:
                shutil.rmtree(cache_dir / key, ignore_errors=True)


def _claim(path: Path, start: int) -> None:
    """Claim a file's space now: writing to a mapped file on a full disk would kill the process without a word.

    ``start`` is where its data begin: all zero, so far.
    """
    with path.open("r+b") as file:
        length = os.path.getsize(path)
        try:
            os.posix_fallocate(file.fileno(), 0, length)
            return
        except AttributeError:  # macOS
            pass
        except OSError as error:
            if error.errno not in NO_FALLOCATE:
                error.filename = str(path)
                raise
        file.seek(start)
        while (left := length - file.tell()) > 0:
            file.write(ZEROS[:left])


def remember(folder: Path, times: list[str]) -> None:
    """Note the times of the files that the cache is known to be of; it is of use without."""
    try:
        index = json.loads((folder / "index.json").read_text())
        with whole_file(folder / "index.json") as file:
            file.write_text(json.dumps({**index, "times": times[-TIMES_KEPT:]}))
    except OSError as error:  # it may be somebody else's
        log.debug("%s: %s", folder, error)
