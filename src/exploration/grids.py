"""Grids of images, alone and as figures with labelled rows and columns."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.utils import make_grid

from src.exploration.writing import LONGEST_NAME, Figure, distinct, drawable, letters

COLUMNS = 8
PADDING = 2  # pixels between the images of a grid
PAIR_GAP = 14  # pixels between a row of reconstructions and the next originals
PAPER, FRAME = 1.0, 0.75  # white; and grey around pictures: seen beside black and white ones alike
INCH = 110  # pixels of a grid that an inch of a figure holds
NARROWEST, WIDEST = 5.0, 14.0  # inches of a figure
LARGEST = 2.3  # inches of a picture with captions
LETTER, LINE = 0.075, 0.17  # inches of a letter and of a line of a caption


def enlarge(images: Tensor) -> Tensor:
    """Clip images ``[N, C, H, W]`` to [0, 1], and enlarge tiny ones by whole pixels to about 64 across."""
    factor = max(1, 64 // images.shape[-1])
    return images.clamp(0, 1).float().repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def in_colour(images: Tensor) -> Tensor:
    """Give images ``[N, C, H, W]`` three channels."""
    return images.expand(-1, 3, -1, -1)


def signed(values: Tensor) -> Tensor:
    """Show values ``[N, C, H, W]`` in [-1, 1] as colours ``[N, 3, H, W]``: red above 0, blue below, white at 0."""
    value = values.mean(1, keepdim=True).clamp(-1, 1)
    return torch.cat([1 + value.clamp_max(0), 1 - value.abs(), 1 - value.clamp_min(0)], 1)


def grid(images: Tensor, columns: int = COLUMNS) -> Tensor:
    """Lay images ``[N, C, H, W]`` in [0, 1] out as one framed picture ``[3, H', W']``."""
    return make_grid(enlarge(images), nrow=columns, padding=PADDING, pad_value=FRAME)


def stacks(rows: Sequence[Tensor], columns: int = COLUMNS) -> Tensor:
    """Lay out several rows of images that belong together column by column, such as originals over reconstructions.

    Each of ``rows`` is ``[N, C, H, W]``; where N exceeds ``columns`` more stacks follow below, and of those only
    whole ones are shown.
    """
    columns = min(columns, len(rows[0]))
    whole = len(rows[0]) // columns * columns
    cut = zip(*(row[:whole].split(columns) for row in rows), strict=True)
    grids = [pad(grid(torch.cat(stack), columns), (0, 0, 0, PAIR_GAP), value=PAPER) for stack in cut]
    return torch.cat(grids, dim=1)[:, :-PAIR_GAP]


def strip(rows: Sequence[Tensor], width: int = 512) -> Tensor:
    """Lay out rows of images ``[N, C, H, W]`` at their own size, at most ``width`` pixels wide: ``[3, H', W']``."""
    image = make_grid(torch.cat([*rows]).clamp(0, 1).float(), nrow=len(rows[0]), padding=1, pad_value=PAPER)
    shrink = min(1.0, width / image.shape[2])
    size = [round(side * shrink) for side in image.shape[1:]]
    return interpolate(image[None], size, mode="bilinear", antialias=True)[0] if shrink < 1 else image


def picture(image: Tensor, title: str) -> Figure:
    """Draw one grid ``[3, H, W]`` with a title, at its own proportions."""
    _, height, width = image.shape
    inches = _inches(width)
    figure = Figure(figsize=(inches, inches * height / width + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    axes.set_title(_wrapped(title, inches), fontsize=11)
    axes.axis("off")
    return figure


def labelled(
    images: Tensor,
    title: str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    xlabel: str = "",
    ylabel: str = "",
) -> Figure:
    """Draw a table of images ``[R, K, C, H, W]`` with names of its rows and columns, and of both axes."""
    figure = captioned([images], title, rows, [columns])
    figure.axes[0].set(xlabel=xlabel, ylabel=ylabel)
    return figure


def stacked(rows: Mapping[str, Tensor], title: str, captions: Sequence[str], columns: int) -> Figure:
    """Draw named rows of images ``[N, C, H, W]`` that belong together column by column.

    Where N exceeds ``columns``, the other images follow below, with the same names of rows.
    """
    cut = zip(*(in_colour(images).split(columns) for images in rows.values()), strict=True)
    tables = [torch.stack(images) for images in cut]
    below = [captions[start : start + columns] for start in range(0, len(tables) * columns, columns)]
    return captioned(tables, title, [*rows], below)


def captioned(tables: Sequence[Tensor], title: str, rows: Sequence[str], captions: Sequence[Sequence[str]]) -> Figure:
    """Draw tables of images ``[R, K, C, H, W]`` below each other, all with the same rows, each with its own captions.

    The last table may have fewer columns. Long captions widen the pictures, and are cut where that is not enough.
    """
    columns = tables[0].shape[1]
    tall, wide = (side + PADDING for side in enlarge(tables[0][0]).shape[-2:])
    pixels = wide * columns + PADDING
    grids = [grid(table.flatten(0, 1), table.shape[1]) for table in tables]
    grids = [pad(image, (0, pixels - image.shape[2]), value=PAPER) for image in grids]
    longest = max((letters(drawable(name)) for names in captions for name in names), default=0)
    inches = max(_inches(pixels), (min(longest, LONGEST_NAME) + 1) * LETTER * columns)
    inches = min(inches, WIDEST, LARGEST * columns)
    cut = iter(distinct([name for names in captions for name in names], int(inches / columns / LETTER)))
    captions = [[next(cut) for _ in names] for names in captions]
    lines = [max((1 + name.count("\n") for name in names if name), default=0) for names in captions]
    heights = [
        image.shape[1] * inches / pixels + (0.2 + LINE * high if high else 0.1)
        for image, high in zip(grids, lines, strict=True)
    ]
    width = max(inches, NARROWEST) + (1.4 if rows else 0.6)
    title = _wrapped(title, width)
    above_and_below = 0.6 + LINE * (1 + title.count("\n"))
    figure = Figure(figsize=(width, sum(heights) + above_and_below), layout="constrained")
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, image, below in zip(panels, grids, captions, strict=True):
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_anchor("N")
        axes.spines[:].set_visible(False)
        for axis, names, size in ((axes.yaxis, rows, tall), (axes.xaxis, below, wide)):
            ticks = [PADDING / 2 + (i + 0.5) * size for i in range(len(names))]
            axis.set_ticks(ticks, labels=list(names), fontsize=9)
            axis.set_tick_params(length=0)
    figure.suptitle(title, fontsize=11)
    return figure


def _inches(pixels: int) -> float:
    """Return the width of a figure whose grid is so many pixels wide."""
    return min(max(pixels / INCH, NARROWEST), WIDEST)


def _wrapped(title: str, inches: float) -> str:
    return fill(title, int(inches * 12.5))
