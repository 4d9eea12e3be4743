"""Noise added to images and taken out of them by a model."""

from collections.abc import Iterator

import torch
from matplotlib.figure import Figure
from torch import Tensor

from src.data.base import ImageDataModule
from src.data.pixels import Pixels
from src.exploration import grids
from src.exploration.overview import originals_of
from src.exploration.own_images import COLUMNS, Pictures
from src.metrics.reconstruction import psnr
from src.models.predictor import Predictor
from src.system.errors import UserError
from src.system.seeds import stream

SHOWN, UNNAMED = 16, 8  # images of the split, and columns of them


def check_noise(noise: float | None, datamodule: ImageDataModule) -> None:
    """Raise a UserError unless ``noise`` is an amount that such pixels can have."""
    if noise is None:
        return
    datamodule.check_pixels(f"noise={noise} is added to")
    limit = 0.5 if datamodule.pixels is Pixels.BINARY else 10
    if not isinstance(noise, int | float) or not 0 < noise <= limit:
        what = "share of flipped pixels" if limit == 0.5 else "standard deviation, where 1 is the full range,"
        raise UserError(f"noise={noise}: give a {what} above 0 and up to {limit}")


def add_noise(x: Tensor, noise: float, pixels: Pixels) -> Tensor:
    """Add Gaussian noise to images and clip them to [0, 1]; flip that share of the pixels of binary ones."""
    if pixels is Pixels.BINARY:
        return torch.where(torch.rand_like(x) < noise, 1 - x, x)
    return (x + noise * torch.randn_like(x)).clamp(0, 1)


def draw(predictor: Predictor, own: Pictures | None, noise: float) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure of each page of the user's pictures, or of images of the split, denoised."""
    if own is None:
        yield "denoising", _figure(predictor, originals_of(predictor, SHOWN), noise, "", [], UNNAMED)
        return
    captions = own.captions
    for name, here in own.pages("denoising"):
        yield name, _figure(predictor, own.x[here], noise, own.remark, captions[here], COLUMNS)


def _figure(predictor: Predictor, x: Tensor, noise: float, remark: str, captions: list[str], columns: int) -> Figure:
    """Draw images ``[N, C, H, W]`` over noisy ones and their reconstructions; the title gives the PSNR of both."""
    with stream(predictor.seed, "noise"):
        noisy = add_noise(x, noise, predictor.datamodule.pixels)
    drawn = torch.cat([*predictor.reconstruct([noisy])])
    before, after = (f"{psnr(images, x).mean():.1f} dB" for images in (noisy, drawn))
    title = f"Denoising{remark}, noise {noise:g}: PSNR {before} before, {after} after"
    return grids.stacked({"original": x, "noisy": noisy, "reconstruction": drawn}, title, captions, columns)
