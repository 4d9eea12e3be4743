"""Decoded images on disk: every file is decoded once, in parallel, into one memory-mapped uint8 array."""

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
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from src.data.decoding import Decoded, Found, decode_all, in_threads
from src.data.splits import content_digest
from src.errors import UserError
from src.files import readable, whole_file
from src.locks import is_locked, lock

log = logging.getLogger(__name__)

OnBadImage = Literal["raise", "skip"]
FORMAT = 4  # raise it when decoding changes, so that old caches are not read
PIECES, PIECE = 4, 256  # of each file, and their bytes: what a cache knows the file's content by
TIMES_KEPT = 16  # copies of a folder that a cache remembers
NO_FALLOCATE = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)  # said by some network file systems
ZEROS = bytes(2**20)
DECODING = ".decoding-"  # begins the names of folders that are decoded into
LEFT = 600  # seconds after which such a folder that nobody has locked is taken for one that was left behind


class Store(NamedTuple):
    """Decoded files, in the order they were listed."""

    images: Tensor  # uint8 [N, C, S, S], memory-mapped; black where a file could not be decoded
    digests: list[bytes]  # of each file's bytes
    found: Found


def resize_images(images: Tensor, size: int) -> Tensor:
    """uint8 images ``[N, C, H, W]`` to ``[N, C, size, size]``, bilinear and antialiased."""
    if images.shape[-2:] == (size, size):
        return images
    return resize(images, [size, size], antialias=True)


def open_store(
    root: Path, files: Sequence[str], size: int, channels: int, cache_dir: Path, name: str, on_bad_image: OnBadImage
) -> Store:
    """The decoded files, from the cache where it is up to date, else decoded into it.

    The cache is found by what is done to the files, their names and sizes, and a sample of the content of each. Where
    their times are none that it has seen (a copied folder, an edited file) all of their content is compared. ``files``
    are paths below ``root``.

    Raises:
        UserError: a file cannot be decoded and ``on_bad_image`` is ``raise``.
        OSError: the disk is full, or a file cannot be read; nothing half-written stays.
    """
    paths = [os.path.join(root, file) for file in files]
    facts = [os.stat(path) for path in paths]
    sizes = [fact.st_size for fact in facts]
    recipe = {"format": FORMAT, "size": size, "channels": channels, "files": list(zip(files, sizes, strict=True))}
    sample = b"".join(_sample(path, length) for path, length in zip(paths, sizes, strict=True))
    folder = cache_dir / f"{name}-{size}px-{_key(json.dumps(recipe).encode() + sample)}"
    times = _key(np.array([fact.st_mtime_ns for fact in facts]).tobytes())
    shape = (len(files), channels, size, size)

    def refuse(i: int, reason: str) -> None:
        if on_bad_image == "raise":
            skip = "or leave it out with data.on_bad_image=skip"
            raise UserError(f"cannot decode {readable(paths[i])}: {reason}, {skip}")

    store, known = _read(folder, shape)
    if store is None or (times not in known and not _is_of(store, paths)):
        _build(folder, paths, shape, times, refuse)
        store, _ = _read(folder, shape)
        if store is None:
            raise UserError(f"the image cache {folder} does not hold what was written: run again, or move cache_dir")
    elif times not in known:
        _remember(folder, [*known, times][-TIMES_KEPT:])
    for i, reason in store.found.bad.items():
        refuse(i, reason)
    return store


def _key(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()


def _sample(path: str, length: int) -> bytes:
    """A few bytes from all over a file; none where it cannot be read, as the decoder will say."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        starts = [max(0, (length - PIECE) * i // (PIECES - 1)) for i in range(PIECES)]
        return b"".join(os.pread(file, PIECE, start) for start in starts)
    finally:
        os.close(file)


def _is_of(store: Store, paths: Sequence[str]) -> bool:
    """Whether a cache is of these files, which have other times: their content is compared."""
    if store.found.bad:  # perhaps mended
        return False
    differ = []

    def compare(i: int) -> None:
        if not differ and content_digest(Path(paths[i]).read_bytes()) != store.digests[i]:
            differ.append(i)

    in_threads(compare, range(len(paths)), "comparing images with their cache")
    return not differ


# ---- the cache's folder: images.npy, and index.json with all else --------------------------------------------------


def _read(folder: Path, shape: tuple[int, ...]) -> tuple[Store | None, list[str]]:
    """A cache and the times of the files that it is known to be of; None where there is none or it is damaged."""
    if not folder.exists():
        return None, []
    try:
        index = json.loads((folder / "index.json").read_text())
        images = np.load(folder / "images.npy", mmap_mode="c")
        if index["sum"] != _sum(index):
            raise ValueError("index.json is not what was written")
        digests = [bytes.fromhex(digest) for digest in index["digests"]]
        found = Found(**{**index["found"], "bad": {int(i): str(why) for i, why in index["found"]["bad"].items()}})
        if (images.shape, images.dtype, len(digests)) != (shape, np.uint8, shape[0]):
            raise ValueError(f"{images.shape} {images.dtype} and {len(digests)} digests in place of {shape} uint8")
        return Store(torch.from_numpy(images), digests, found), [*index["times"]]
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # whatever reading a damaged file raises
        log.warning("the image cache %s is damaged (%s): the images are decoded anew", readable(folder), error)
        return None, []


def _sum(index: dict[str, Any]) -> str:
    return _key(json.dumps([index["digests"], index["found"]]).encode())


def _build(
    folder: Path, paths: Sequence[str], shape: tuple[int, ...], times: str, refuse: Callable[[int, str], None]
) -> None:
    """Decode into a temporary folder, then rename it: a cache is there whole or not at all."""
    _, channels, size, _ = shape
    replace = folder.exists()  # damaged, or of other files
    digests = [content_digest(os.fsencode(path)) for path in paths]  # of bad files: they are like no other

    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{DECODING}*"):
        with contextlib.suppress(FileNotFoundError):
            if not is_locked(left) and time.time() - left.stat().st_mtime > LEFT:  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=DECODING))
    held = lock(temporary)
    try:
        new = temporary / "new"
        new.mkdir()
        array = np.lib.format.open_memmap(new / "images.npy", "w+", np.uint8, shape)
        _claim(new / "images.npy", array.offset)

        def take(i: int, decoded: Decoded) -> None:
            array[i], digests[i] = decoded.pixels, decoded.digest

        found = decode_all(paths, size, channels, take, refuse)
        array.flush()
        index = {"digests": [digest.hex() for digest in digests], "found": found._asdict(), "times": [times]}
        (new / "index.json").write_text(json.dumps({**index, "sum": _sum(index)}))
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
        if held is not None:
            held.close()


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


def _remember(folder: Path, times: list[str]) -> None:
    """Note that the cache is of files of these times, too; it is of use without."""
    try:
        index = json.loads((folder / "index.json").read_text())
        with whole_file(folder / "index.json") as file:
            file.write_text(json.dumps({**index, "times": times}))
    except OSError as error:  # it may be somebody else's
        log.debug("%s: %s", folder, error)
