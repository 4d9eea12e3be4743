"""What a picture is like without any model: brightness, contrast in all and in cells, file size, power spectrum.

A detector that does not beat these has learned nothing else. All take uint8 images ``[N, C, H, W]`` as tensors on the
CPU, and give float64 arrays.
"""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from src.metrics.contrast import contrast_map

BANDS = 12
CELLS = 4  # along a side
QUALITY = 75  # of JPEG, Pillow's default
BLOCK = 256  # images that are transformed at once


def brightness(images: Tensor) -> np.ndarray:
    """Return the mean level of each image ``[N]``, from 0 to 255."""
    return images.double().flatten(1).mean(1).numpy()


def contrast(images: Tensor) -> np.ndarray:
    """Return the standard deviation of each image's levels ``[N]``."""
    return images.double().flatten(1).std(1, correction=0).numpy()


def jpeg_bytes(images: Tensor) -> np.ndarray:
    """Return the size of each image as a JPEG file of quality 75 ``[N]``: small for smooth images."""
    return _bytes(images, format="JPEG", quality=QUALITY)


def png_bytes(images: Tensor) -> np.ndarray:
    """Return the size of each image as a PNG file ``[N]``: small for smooth images without noise."""
    return _bytes(images, format="PNG")


def power_spectrum(images: Tensor, bands: int = BANDS) -> np.ndarray:
    """Return log10 of the mean power of each image in bands of spatial frequency ``[N, bands]``, low ones first.

    Of the grey image, standardised, under a Hann window. Bands are rings of equal width, from above 0 to half a cycle a
    pixel along an axis; there are fewer where images are small.
    """
    side = min(images.shape[-2:])
    bands = max(1, min(bands, side // 2 - 1))
    height, width = images.shape[-2:]
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[1:-1]
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    ring = np.ceil(radius / 0.5 * bands).astype(int).clip(0, bands + 1)  # 0: the mean; bands + 1: the corners
    counts = np.bincount(ring.ravel(), minlength=bands + 2)[1 : bands + 1]
    found = []
    for block in images.split(BLOCK):
        grey = block.double().mean(1).numpy()
        grey = grey - grey.mean((1, 2), keepdims=True)
        grey /= np.maximum(grey.std((1, 2), keepdims=True), 1e-3)
        power = np.abs(np.fft.rfft2(grey * window)) ** 2
        sums = np.stack([np.bincount(ring.ravel(), one.ravel(), bands + 2) for one in power])[:, 1 : bands + 1]
        found.append(np.log10(sums / counts + 1e-9))
    return np.concatenate(found)


def local_contrast(images: Tensor, cells: int = CELLS) -> np.ndarray:
    """Return the contrast in cells of each image ``[N, cells^2]``, see :func:`~src.metrics.contrast.contrast_map`.

    What is left over beside a square of whole cells, at the right and the bottom, is not looked at.
    """
    cells = min(cells, *images.shape[-2:])
    side = min(images.shape[-2:]) // cells * cells
    found = [contrast_map(block[..., :side, :side].double() / 255, cells).flatten(1) for block in images.split(BLOCK)]
    return torch.cat(found).numpy()


NUMBERS = {"brightness": brightness, "contrast": contrast, "jpeg_bytes": jpeg_bytes, "png_bytes": png_bytes}


def _bytes(images: Tensor, **options: object) -> np.ndarray:
    sizes = []
    for image in images.movedim(1, -1).numpy():
        file, levels = io.BytesIO(), image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(np.ascontiguousarray(levels)).save(file, **options)
        sizes.append(file.tell())
    return np.array(sizes, dtype=float)
