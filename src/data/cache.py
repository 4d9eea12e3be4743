"""The folders of the image cache: images.npy, digests.npy, and index.json with everything else.

A folder is complete or absent.
"""

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

from src.data.decoding import Found, decode_all
from src.data.picture import Decoded, Treatment
from src.data.splits import DIGEST, content_digest
from src.system.files import readable, whole_file
from src.system.locks import turn

log = logging.getLogger(__name__)

TIMES_KEPT = 16  # copies of a folder whose file times a cache remembers
NO_FALLOCATE = (
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
    errno.EINVAL,
    errno.ENOSYS,
)  # network disks cannot reserve space
DAMAGED = (
    None,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
)  # mean a damaged cache; None: no number
ZEROS = bytes(2**20)
DECODING, LOCK = ".decoding-", ".lock"  # around a cache's name: the folder that is decoded into, and its lock
DAY = 86_400  # seconds after which an unfinished folder counts as abandoned where the file system has no locks


class Store(NamedTuple):
    """Decoded files, in the order they were listed."""

    images: Tensor  # uint8 [N, C, S, S], memory-mapped; black where a file could not be decoded
    digests: list[bytes]  # of each file's bytes
    found: Found


def short_hash(*data: bytes | np.ndarray) -> str:
    """Return 16 hex digits that are equal for equal content."""
    digest = blake2b(digest_size=8)
    for some in data:
        digest.update(some)
    return digest.hexdigest()


def version(folder: Path) -> tuple[int, int] | None:
    """Return a value that changes when the cache in a folder does; None without a cache."""
    try:
        fact = os.stat(folder / "index.json")
    except OSError:
        return None
    return fact.st_ino, fact.st_mtime_ns


def read(folder: Path, shape: tuple[int, ...]) -> tuple[Store | None, list[str]]:
    """Return a cache and the file times it is known to fit; None for a cache that is absent or damaged.

    Raises:
        OSError: the disk or the network fails.
    """
    if not folder.exists():
        return None, []
    try:
        index = json.loads((folder / "index.json").read_text())
        if (
            index["found"]["bad"] and "span" not in index["found"]
        ):  # an earlier version could not read what this one can
            return None, []
        images = np.load(folder / "images.npy", mmap_mode="c")
        digests = np.load(folder / "digests.npy")
        if index["sum"] != _sum(digests, index):
            raise ValueError("index.json or digests.npy is not what was written")
        found = _found(index["found"])
        if (images.shape, images.dtype, digests.shape) != (shape, np.uint8, (shape[0], DIGEST)):
            raise ValueError(f"{images.shape} {images.dtype} and {len(digests)} digests in place of {shape} uint8")
        content = digests.tobytes()
        each = [content[start : start + DIGEST] for start in range(0, len(content), DIGEST)]
        return Store(torch.from_numpy(images), each, found), [*index["times"]]
    except MemoryError:
        raise
    except Exception as error:  # reading a damaged file raises anything
        if isinstance(error, OSError) and error.errno not in DAMAGED:  # the disk or the network fails
            raise
        log.warning("the image cache %s is damaged (%s): the images are decoded anew", readable(folder), error)
        return None, []


def _found(written: dict[str, Any]) -> Found:
    """Return what was found in the files, with positions as numbers again, which keys of JSON cannot be."""
    by_position = {key: {int(i): str(what) for i, what in written.get(key, {}).items()} for key in ("bad", "patients")}
    return Found(**written | by_position)


def _sum(digests: np.ndarray, index: dict[str, Any]) -> str:
    return short_hash(np.ascontiguousarray(digests), json.dumps(index["found"]).encode())


def turn_to_build(folder: Path, waiting: str) -> contextlib.AbstractContextManager[bool]:
    """Let one process at a time build a cache, as :func:`src.system.locks.turn` does; make the folder around it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return turn(folder.parent, f"{DECODING}{folder.name}{LOCK}", waiting)


def build(
    folder: Path,
    paths: Sequence[str],
    shape: tuple[int, ...],
    times: str,
    treatment: Treatment,
    refuse: Callable[[int, str], None],
    alone: bool,
) -> None:
    """Decode into a temporary folder, then rename it.

    Args:
        folder: of the cache.
        paths: the files.
        shape: ``[N, C, S, S]``.
        times: hash of the files' times.
        treatment: what is done to each picture.
        refuse: as for :func:`src.data.decoding.decode_all`.
        alone: whether no other process can be building this cache.
    """
    damaged = folder.exists()  # or a cache of other files
    _remove_abandoned(folder.parent)
    temporary = folder.parent / f"{DECODING}{folder.name}"
    if alone:
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process
        temporary.mkdir()
    else:
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{temporary.name}-"))
    try:
        new = temporary / "new"
        new.mkdir()
        _decode_into(new, paths, shape, times, treatment, refuse)
        if damaged:
            with contextlib.suppress(FileNotFoundError):  # another process has just moved it away
                folder.rename(temporary / "old")
        try:
            new.rename(folder)
        except OSError:
            if not folder.exists():  # else another process has just decoded the same files
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decode_into(
    folder: Path,
    paths: Sequence[str],
    shape: tuple[int, ...],
    times: str,
    treatment: Treatment,
    refuse: Callable[[int, str], None],
) -> None:
    """Write the files of a cache into an empty folder."""
    array = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    _claim(folder / "images.npy", array.offset)
    digests = np.zeros((len(paths), DIGEST), np.uint8)

    def take(i: int, decoded: Decoded) -> None:
        array[i], digests[i] = decoded.pixels, np.frombuffer(decoded.digest, np.uint8)

    _, channels, size, _ = shape
    found = decode_all(paths, size, channels, take, refuse, treatment)
    for i in found.bad:  # a digest that no image has
        digests[i] = np.frombuffer(content_digest(os.fsencode(paths[i])), np.uint8)
    array.flush()
    np.save(folder / "digests.npy", digests)
    index = {"found": found._asdict(), "times": [times]}
    (folder / "index.json").write_text(json.dumps({**index, "sum": _sum(digests, index)}))


def _remove_abandoned(cache_dir: Path) -> None:
    """Remove unfinished folders of killed processes: nobody holds their locks."""
    for abandoned in cache_dir.glob(f"{DECODING}*"):
        key = abandoned.name.removesuffix(LOCK)
        with contextlib.suppress(FileNotFoundError, BlockingIOError), turn(cache_dir, f"{key}{LOCK}") as alone:
            if alone or time.time() - (cache_dir / key).stat().st_mtime > DAY:
                shutil.rmtree(cache_dir / key, ignore_errors=True)


def _claim(path: Path, start: int) -> None:
    """Reserve a file's space now: writing to a mapped file on a full disk would kill the process with SIGBUS.

    The data begin at byte ``start``, and are still all zero.
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
    """Record the file times that the cache is known to fit; the cache works without that."""
    try:
        index = json.loads((folder / "index.json").read_text())
        with whole_file(folder / "index.json") as file:
            file.write_text(json.dumps({**index, "times": times[-TIMES_KEPT:]}))
    except OSError as error:  # the cache may belong to another user
        log.debug("%s: %s", folder, error)
