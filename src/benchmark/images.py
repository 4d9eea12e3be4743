"""The images to measure with: the user's data sets, or random images of the same kind and size."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from src.system.files import quoted

JPEGS = 6000  # about as many as there are chest X-rays
FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "chest_xray": "chest_xray"}


def data_overrides(data: str, root: Path, folder: Path) -> tuple[list[str], str]:
    """Return overrides that point a data set at the images below ``root``, and what to call these images.

    Where there are none, write random ones into ``folder`` and point at those.

    Args:
        data: the name of a data set, one of :data:`FOLDERS`.
        root: the folder of the user's data sets.
        folder: where random images may be written.
    """
    if data == "chest_xray":
        there, made, options = root / "chest_xray", folder / "chest_xray", []
    else:
        there, made, options = root, folder, ["data.download=false"]
    if (root / FOLDERS[data]).is_dir():
        return [f"data.root={quoted(there)}", *options], data
    if data == "chest_xray":
        options = [f"data.cache_dir={quoted(folder / 'cache')}", "data.published=[]", "data.group_pattern=null"]
        write_jpegs(made / "train" / "NORMAL", JPEGS, (224, 224))
    else:
        options += ["data.checksum=null"]
        write_idx(made / FOLDERS[data] / "raw")
    return [f"data.root={quoted(made)}", *options], "random images"


def write_jpegs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write ``count`` JPEGs of smooth grey noise in RGB, height and width ``size``; no two have the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size[::-1], Image.Resampling.BICUBIC).convert("RGB").save(buffer, "jpeg", quality=90)
    for i in range(count):  # decoders ignore what follows the end of a JPEG
        (folder / f"{i:05d}.jpeg").write_bytes(buffer.getvalue() + i.to_bytes(4, "big"))


def write_idx(folder: Path, train: int = 60_000, test: int = 10_000) -> None:
    """Write MNIST's four files with random pixels and labels of ``train`` and ``test`` images."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
