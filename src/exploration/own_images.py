"""A user's own pictures through a trained model, and noise taken out of images."""

import logging
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from src.data.base import ImageDataModule
from src.data.decoding import Decoded, decode_all
from src.data.layout import list_images
from src.data.pixels import Pixels
from src.exploration import grids
from src.exploration.gallery import originals_of, whole
from src.exploration.scores import MIND, Scores
from src.exploration.writing import short
from src.metrics.reconstruction import psnr
from src.models.predictor import Predictor
from src.system.errors import UserError
from src.system.files import readable
from src.system.seeds import stream

log = logging.getLogger(__name__)

COLUMNS, ROWS = 6, 3  # pictures in a figure; wide enough for their names
LONGEST = 16  # letters of a file name below a picture
UNNAMED = 8  # columns of images without names
SHOWN = 16  # images of the split in the figure of denoising


class Pictures(NamedTuple):
    """Decoded files, as the model sees them."""

    names: list[str]
    x: Tensor  # [N, C, H, W]


def read(where: str | list[str], datamodule: ImageDataModule, invert: bool = False) -> Pictures:
    """A file, a folder, a glob or a list of them, with the preprocessing of the run's data; or their negatives.

    Those that cannot be decoded are left out, with a warning each.

    Raises:
        UserError: there are no pictures, or none can be decoded.
    """
    places = [where] if isinstance(where, str | int) else where
    files = [file for place in places for file in _files(str(place))]
    levels: dict[int, Tensor] = {}

    def take(i: int, decoded: Decoded) -> None:
        levels[i] = torch.from_numpy(255 - decoded.pixels if invert else decoded.pixels.copy())

    size, channels, depth = datamodule.image_size, datamodule.channels, datamodule.pool.treatment.get("depth")
    found = decode_all(files, size, channels, take, lambda i, reason: None, depth)
    wrong = [f"cannot decode {readable(files[i])}: {reason}" for i, reason in found.bad.items()]
    if not levels:
        more = f" ({len(wrong) - 1} more cannot be decoded either)" if len(wrong) > 1 else ""
        raise UserError(f"images={where}: {wrong[0]}{more}")
    for line in wrong:
        log.warning("left out: %s", line)
    for note in found.notes:
        log.info("images: %s", note)
    with stream(datamodule.seed, "pictures"):
        x = datamodule.scale(torch.stack([levels[i] for i in sorted(levels)]))
    return Pictures([readable(files[i]) for i in sorted(levels)], x)


def _files(place: str) -> list[Path]:
    path, notes = Path(place).expanduser(), []
    if path.is_dir():
        names, notes = list_images(path)
        files = [path / name for name in names]
    else:
        files = [path] if path.is_file() else [Path(f) for f in sorted(glob(str(path), recursive=True))]
        files = [f for f in files if f.is_file()]
    if not files:
        found = f" ({'; '.join(notes)})" if notes else ""
        how = "give a file, a folder or a glob such as 'scans/*.png'"
        raise UserError(f"images={readable(place)}: no picture there{found}; {how}")
    for note in notes:
        log.info("images=%s: %s", readable(place), note)
    return files


def check_noise(noise: float | None, datamodule: ImageDataModule) -> None:
    """Raise a UserError unless ``noise`` is an amount that such pixels can have."""
    if noise is None:
        return
    limit = 0.5 if datamodule.pixels is Pixels.BINARY else 10
    if not isinstance(noise, int | float) or not 0 < noise <= limit:
        what = "share of flipped pixels" if limit == 0.5 else "standard deviation, where 1 is the full range,"
        raise UserError(f"noise={noise}: give a {what} above 0 and up to {limit}")


def add_noise(x: Tensor, noise: float, pixels: Pixels) -> Tensor:
    """Images with Gaussian noise, clipped to [0, 1]; binary ones with that share of their pixels flipped."""
    if pixels is Pixels.BINARY:
        return torch.where(torch.rand_like(x) < noise, 1 - x, x)
    return (x + noise * torch.randn_like(x)).clamp(0, 1)


def draw(
    predictor: Predictor, own: Pictures | None, noise: float | None, of: Scores | None = None
) -> Iterator[tuple[str, Figure]]:
    """Figures of the user's pictures, or of denoised images of the split where only ``noise`` is given, by name.

    Args:
        predictor: the model.
        own: the pictures.
        noise: to be taken out of them.
        of: scores of the pictures, where they are to be shown with them.
    """
    if own is None:
        if noise is not None:
            yield "denoising", _figure(predictor, originals_of(predictor, SHOWN), None, noise)
        return
    pages = range(0, len(own.names), COLUMNS * ROWS)
    for page, start in enumerate(pages, 1):
        here = slice(start, start + COLUMNS * ROWS)
        shown = None if of is None else Scores(*(column[here] for column in of))
        figure = _figure(predictor, own.x[here], own.names[here], noise, shown)
        yield "pictures" if len(pages) == 1 else f"pictures_{page}", figure


def _figure(
    predictor: Predictor, x: Tensor, names: list[str] | None, noise: float | None, of: Scores | None = None
) -> Figure:
    """Originals over (noisy inputs over) reconstructions, with file names; the title says how near they are.

    With scores also where both differ, and the nearest training images.
    """
    seen, drawn = x, None if of is None else of.reconstruction
    if noise is not None:
        with stream(predictor.seed, "noise"):
            seen = add_noise(x, noise, predictor.datamodule.pixels)
        drawn = None
    drawn = whole(predictor.reconstruct([seen])) if drawn is None else drawn
    stack = {"original": x, **({} if noise is None else {"noisy": seen}), "reconstruction": drawn}
    before, after = (f"{psnr(images, x).mean():.1f} dB" for images in (seen, drawn))
    title = f"Reconstructions, PSNR {after}"
    if noise is not None:
        title = f"Denoising, noise {noise:g}: PSNR {before} before, {after} after"
    elif of is not None:
        difference, name = x - drawn, predictor.model.metric_names(predictor.datamodule.pixels)["elbo"]
        reach = difference.abs().max().clamp_min(1e-6)
        stack["difference"] = grids.signed(difference / reach)
        stack["nearest"] = predictor.datamodule.pool.images[of.nearest] / 255
        title += (
            f". Red: brighter than the reconstruction, blue: darker, by up to {reach:.2f} of the full range. "
            f"Below: the nearest training image; −{name} and the share of validation images where it is lower ({MIND})"
        )
    columns = COLUMNS if names else min(UNNAMED, len(x))
    tables, captions = [], []
    for start in range(0, len(x), columns):
        here = slice(start, start + columns)
        rows = [grids.in_colour(images[here]) for images in stack.values()]
        blank = torch.ones(columns - len(rows[0]), *rows[0].shape[1:])
        tables.append(torch.stack([torch.cat([row, blank]) for row in rows]))
        captions.append(
            [_caption(i, names, of if noise is None else None) for i in range(len(x))[here]] if names else []
        )
    return grids.captioned(tables, title, list(stack), captions)


def _caption(i: int, names: list[str], of: Scores | None) -> str:
    """A file's name, and what it costs."""
    name = short(Path(names[i]).name, LONGEST)
    return name if of is None else f"{name}\n{of.negative_elbo[i]:,.1f} nats\n(above {100 * of.rank[i]:.0f} %)"
