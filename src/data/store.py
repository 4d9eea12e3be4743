"""Decoded images on disk: every file is decoded once, in parallel, into one memory-mapped uint8 array."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from src.console import progress
from src.data.splits import content_digest
from src.errors import UserError
from src.machine import processors

OnBadImage = Literal["raise", "skip"]
DRAFT = 4  # a JPEG this many times larger is decoded at a half, a quarter or an eighth of its size
AT_A_TIME = 32  # files that a thread takes, at most: one by one, the threads wait for each other
FORMAT = 3  # raise it when decoding changes, so that old caches are not read


class Store(NamedTuple):
    """Decoded files, in the order they were listed."""

    images: Tensor  # uint8 [N, C, S, S], memory-mapped
    digests: list[bytes]  # of each file's bytes
    bad: dict[str, str]  # path below the root: why it could not be decoded (its row is black)


def resize_images(images: Tensor, size: int) -> Tensor:
    """uint8 images ``[N, C, H, W]`` to ``[N, C, size, size]``, bilinear and antialiased."""
    if images.shape[-2:] == (size, size):
        return images
    return resize(images, [size, size], antialias=True)


def decode(path: Path, size: int, channels: int) -> tuple[np.ndarray, bytes]:
    """One file as uint8 ``[channels, size, size]``, and the digest of its bytes.

    Upright as its EXIF says; stretched to a square; 16-bit grey (common for X-rays) is scaled, not clipped.
    """
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as file:
        # What only JPEG listens to: a grey image is its luma channel, and a far larger one is decoded at a fraction of
        # its size that is at least twice ours: the rest of the way is left to the filter.
        reduced = (2 * size, 2 * size) if min(file.size) >= DRAFT * size else file.size
        file.draft("L" if channels == 1 else None, reduced)
        image = ImageOps.exif_transpose(file)
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers: save it with 8 or 16 bits a pixel")
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).round().astype(np.uint8))
        image = image.convert("L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)
    return pixels, content_digest(data)


def what_is_wrong(path: Path, error: Exception) -> str:
    """Why :func:`decode` failed, in a few words."""
    if os.path.getsize(path) == 0:
        return "zero bytes"
    return "it is no image" if isinstance(error, UnidentifiedImageError) else str(error).split(" '/")[0]


def open_store(
    root: Path, files: Sequence[str], size: int, channels: int, cache_dir: Path, name: str, on_bad_image: OnBadImage
) -> Store:
    """The decoded files, from the cache where it is up to date, else decoded into it.

    The cache is keyed by the list of files, their sizes and times, and what is done to them. ``files`` are paths below
    ``root``.

    Raises:
        UserError: a file cannot be decoded and ``on_bad_image`` is ``raise``.
        OSError: the disk is full; nothing half-written stays.
    """
    facts = [os.stat(root / file) for file in files]
    recipe = {
        "format": FORMAT,
        "size": size,
        "channels": channels,
        "files": [(file, fact.st_size, fact.st_mtime_ns) for file, fact in zip(files, facts, strict=True)],
    }
    key = blake2b(json.dumps(recipe).encode(), digest_size=8).hexdigest()
    folder = cache_dir / f"{name}-{size}px-{key}"
    if not folder.exists():
        _build(folder, root, files, (len(files), channels, size, size), on_bad_image)
    try:
        index = json.loads((folder / "index.json").read_text())
        images = torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c"))
    except (OSError, ValueError) as error:
        raise UserError(f"the image cache {folder} is damaged ({error}): delete that folder and run again") from error
    _refuse_bad(root, index["bad"], on_bad_image)
    return Store(images, [bytes.fromhex(d) for d in index["digests"]], index["bad"])


def _build(folder: Path, root: Path, files: Sequence[str], shape: tuple[int, ...], on_bad_image: OnBadImage) -> None:
    """Decode into a temporary folder, then rename it: a cache is there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".decoding-"))
    try:
        array = np.lib.format.open_memmap(temporary / "images.npy", "w+", np.uint8, shape)
        with open(temporary / "images.npy", "r+b") as file:
            # Claim the space now: writing to a mapped file on a full disk would kill the process without a word.
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(file.name))
        digests, bad = _decode_all(root, files, array, on_bad_image)
        array.flush()
        (temporary / "index.json").write_text(json.dumps({"digests": [d.hex() for d in digests], "bad": bad}))
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # else another process has just decoded the same files
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decode_all(
    root: Path, files: Sequence[str], array: np.ndarray, on_bad_image: OnBadImage
) -> tuple[list[bytes], dict[str, str]]:
    """Fill the rows of ``array``; return the digests and the files that cannot be decoded."""
    _, channels, size, _ = array.shape
    digests = [b""] * len(files)
    bad: dict[str, str] = {}

    def work(i: int) -> None:
        try:
            array[i], digests[i] = decode(root / files[i], size, channels)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            bad[files[i]] = what_is_wrong(root / files[i], error)
            digests[i] = content_digest(files[i].encode())
            _refuse_bad(root, bad, on_bad_image)

    threads = processors()
    turn = max(1, min(AT_A_TIME, len(files) // (4 * threads)))
    turns = [range(start, min(start + turn, len(files))) for start in range(0, len(files), turn)]
    pool = ThreadPoolExecutor(threads)  # Pillow decodes and resizes outside the interpreter lock
    try:
        done = pool.map(lambda numbers: [work(i) for i in numbers], turns)
        list(progress(chain.from_iterable(done), "decoding images", len(files)))
    finally:
        pool.shutdown(cancel_futures=True)
    return digests, dict(sorted(bad.items()))


def _refuse_bad(root: Path, bad: dict[str, str], on_bad_image: OnBadImage) -> None:
    if bad and on_bad_image == "raise":
        name, reason = next(iter(bad.items()))
        raise UserError(f"cannot decode {root / name}: {reason}. Repair or remove it, or set data.on_bad_image=skip")
