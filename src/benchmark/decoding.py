"""Decoding a folder of JPEGs, beside a loop over torchvision's ImageFolder."""

import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torchvision import datasets, transforms

from src.benchmark.measurement import Measurement, seconds
from src.benchmark.settings import composed
from src.benchmark.standin import FULL_SIZE, write_jpegs
from src.runs import build
from src.system.files import quoted

IMAGE_SIZE = 128  # pixels that JPEGs are decoded to


def decoding(xrays: Path | None, full_size: Path | None, repetitions: int) -> Iterator[Measurement]:
    """A folder of JPEGs into the cache, and from it, beside a loop over torchvision's ``ImageFolder``.

    Args:
        xrays: a folder of class folders with pictures of 224 pixels; None for random ones.
        full_size: the same with large pictures.
        repetitions: rounds; the median counts.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        if xrays is None:
            write_jpegs(folder / "small" / "class", 2000, (224, 224))
        if full_size is None:
            write_jpegs(folder / "large" / "class", 24, FULL_SIZE)
        for root in (xrays or folder / "small", full_size or folder / "large"):
            yield from _decoding_of(root, folder / "cache", repetitions)


def _decoding_of(root: Path, cache: Path, repetitions: int) -> Iterator[Measurement]:
    to_size = transforms.Compose([transforms.Grayscale(), transforms.Resize((IMAGE_SIZE, IMAGE_SIZE))])

    command = ("data=image_folder", "data.channels=1", f"data.image_size={IMAGE_SIZE}")
    cfg = composed(*command, f"data.root={quoted(root)}", f"data.cache_dir={quoted(cache)}")
    for path in root.rglob("*"):  # from the disk, once: both read it from memory
        if path.is_file():
            path.read_bytes()
    loop, cold, cached = [], [], []
    for _ in range(repetitions):
        shutil.rmtree(cache, ignore_errors=True)
        cold.append(
            seconds(lambda: build.build_datamodule(cfg).prepare_data())
        )  # first: it names a file it cannot read
        loop.append(seconds(lambda: [None for _ in datasets.ImageFolder(str(root), to_size)]))
        cached.append(seconds(lambda: build.build_datamodule(cfg).setup("fit")))
    images = len(build.build_datamodule(cfg).pool.images)
    first, _ = datasets.ImageFolder(str(root))[0]
    size = f"{first.width}x{first.height} (the first)"
    ratio = statistics.median(a / b for a, b in zip(loop, cold, strict=True))
    yield Measurement(f"decoding, {size}: ours / ImageFolder loop", ratio, "ratio")
    yield Measurement(f"decoding, {size}: ours", images / statistics.median(cold), "images/s")
    yield Measurement(f"decoding, {size}: ImageFolder loop", images / statistics.median(loop), "images/s")
    yield Measurement(f"{images:,} cached images, {size}: ready after", statistics.median(cached), "s")
