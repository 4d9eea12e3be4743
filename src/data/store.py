"""Decoded images on disk: every file is decoded once, in parallel, into one memory-mapped uint8 array."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2.functional import resize

from src.data import cache
from src.data.cache import Store, short_hash
from src.data.decoding import in_threads
from src.data.dicom import decoders
from src.data.picture import USUAL, Treatment
from src.data.splits import DIGEST, content_digest
from src.system.errors import UserError
from src.system.files import readable

OnBadImage = Literal["raise", "skip"]
FORMAT = 5  # increase it when decoding or the cache's files change, so that old caches are not read
PIECES, PIECE = 4, 256  # samples of each file's content, and bytes in each
TRIED, FAR = 256, 2e-4  # files that are timed, and seconds per file above which a disk counts as slow or remote
ASKING = 32  # threads that read from such a disk; on a fast local one threads only wait for each other


class Paths(Sequence[str]):
    """The paths of files below a folder, joined on access: a million joined paths would fill the memory."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self.root, self.files = os.path.join(root, ""), files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> str:
        return self.root + self.files[i]


class Facts(NamedTuple):
    """What identifies N files without reading all of their content."""

    sizes: np.ndarray  # int64 [N], bytes
    times: np.ndarray  # int64 [N], of the last change, in nanoseconds
    marks: np.ndarray  # uint8 [N, 16], hashes of names and samples of the content


def resize_images(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images ``[N, C, H, W]`` to ``[N, C, size, size]``, bilinear and antialiased."""
    if images.shape[-2:] == (size, size):
        return images
    return resize(images, [size, size], antialias=True)


def open_store(
    root: Path,
    files: Sequence[str],
    size: int,
    channels: int,
    cache_dir: Path,
    name: str,
    on_bad_image: OnBadImage,
    treatment: Treatment = USUAL,
) -> Store:
    """Return the decoded files, from the cache where it is up to date; else decode them into it.

    A cache is identified by how files are decoded, their names and sizes, and a sample of the content of each. Where
    the cache has not seen the files' times (a copied folder, an edited file), all of their content is compared.
    ``files`` are paths below ``root``.

    Raises:
        UserError: a file cannot be decoded and ``on_bad_image`` is ``raise``.
        OSError: the disk is full, or a file cannot be read; no unfinished cache stays behind.
    """
    paths, shape = Paths(root, files), (len(files), channels, size, size)
    facts = _facts(paths)
    recipe = json.dumps(_recipe(files, size, channels, treatment)).encode()
    folder = cache_dir / f"{name}-{size}px-{short_hash(recipe, facts.sizes, facts.marks)}"
    times = short_hash(facts.times)

    def refuse(i: int, reason: str) -> None:
        if on_bad_image == "raise":
            skip = "or leave it out with data.on_bad_image=skip"
            raise UserError(f"cannot decode {readable(paths[i])}: {reason}, {skip}")

    seen = cache.version(folder)
    store = _up_to_date(folder, shape, times, paths)
    if store is None:
        waiting = f"{name}: waiting for another process, which decodes the same images"
        with cache.turn_to_build(folder, waiting) as alone:
            if cache.version(folder) != seen:  # another process has just decoded them
                store = _up_to_date(folder, shape, times, paths)
            if store is None:
                cache.build(folder, paths, shape, times, treatment, refuse, alone)
                store, _ = cache.read(folder, shape)
        if store is None:
            raise UserError(f"the image cache {folder} does not hold what was written: run again, or move cache_dir")
    for i, reason in store.found.bad.items():
        refuse(i, reason)
    return store


def _recipe(files: Sequence[str], size: int, channels: int, treatment: Treatment) -> dict[str, Any]:
    """Return how files are decoded; what came later is named where it matters only, so that old caches are found."""
    recipe: dict[str, Any] = {"format": FORMAT, "size": size, "channels": channels}
    usual = USUAL._asdict()
    recipe |= {key: how for key, how in treatment._asdict().items() if how != usual[key]}
    if any(not file.lower().endswith(IMG_EXTENSIONS) for file in files):  # DICOM
        recipe["decoders"] = decoders()
    return recipe


def _up_to_date(folder: Path, shape: tuple[int, ...], times: str, paths: Sequence[str]) -> Store | None:
    """Return the cache if it exists and holds these files."""
    store, known = cache.read(folder, shape)
    if store is None or times in known:
        return store
    if not _is_of(store, paths):
        return None
    cache.remember(folder, [*known, times])
    return store


def _facts(paths: Sequence[str]) -> Facts:
    """Return what identifies the files; each is opened once, because every access to a disk takes time.

    Raises:
        OSError: a file has disappeared.
    """
    count = len(paths)
    facts = Facts(np.empty(count, np.int64), np.empty(count, np.int64), np.empty((count, DIGEST), np.uint8))

    def examine(i: int) -> None:
        facts.sizes[i], facts.times[i], sample = _size_time_sample(paths[i])
        facts.marks[i] = np.frombuffer(content_digest(os.fsencode(paths.files[i]) + b"\0" + sample), np.uint8)

    tried, began = min(count, TRIED), time.perf_counter()
    for i in range(tried):
        examine(i)
    remote = time.perf_counter() - began > FAR * tried
    in_threads(examine, range(tried, count), "looking at images", ASKING if remote else 1)
    return facts


def _size_time_sample(path: str) -> tuple[int, int, bytes]:
    """Return size, time of the last change, and a sample of the content (empty if the file may not be read)."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:  # the decoder reports why
        fact = os.stat(path)
        return fact.st_size, fact.st_mtime_ns, b""
    try:
        fact = os.fstat(file)
        if (length := fact.st_size) <= PIECES * PIECE:
            return length, fact.st_mtime_ns, os.pread(file, length, 0)
        starts = [(length - PIECE) * i // (PIECES - 1) for i in range(PIECES)]
        return length, fact.st_mtime_ns, b"".join(os.pread(file, PIECE, start) for start in starts)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(file)


def _is_of(store: Store, paths: Sequence[str]) -> bool:
    """Return whether a cache holds these files, whose times it does not know, by comparing all content."""
    if store.found.bad:  # the user may have repaired them
        return False
    differ = []

    def compare(i: int) -> None:
        if not differ and content_digest(Path(paths[i]).read_bytes()) != store.digests[i]:
            differ.append(i)

    in_threads(compare, range(len(paths)), "comparing images with their cache")
    return not differ
