"""Grids of images, alone and as figures with labelled rows and columns."""

from collections.abc import Sequence
from textwrap import fill

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.utils import make_grid

from src.exploration.writing import LONGEST_NAME, Figure, drawable, letters, short

COLUMNS = 8
PADDING = 2  # pixels between the images of a grid
PAIR_GAP = 14  # pixels between a row of reconstructions and the next originals
GAP = 1.0  # white between pictures: X-rays and digits have black borders
INCH = 110  # pixels of a grid that an inch of a figure holds
WIDEST = 14.0  # inches of a figure
LETTER = 0.075  # inches of a letter of a caption


def enlarge(images: Tensor) -> Tensor:
    """Images ``[N, C, H, W]`` clipped to [0, 1]; tiny ones enlarged by whole pixels to about 64 across."""
    factor = max(1, 64 // images.shape[-1])
    return images.clamp(0, 1).float().repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def in_colour(images: Tensor) -> Tensor:
    """Images ``[N, C, H, W]`` with three channels."""
    return images.expand(-1, 3, -1, -1)


def signed(values: Tensor) -> Tensor:
    """Values ``[N, C, H, W]`` in [-1, 1] as colours ``[N, 3, H, W]``: red above 0, blue below, white at 0."""
    value = values.mean(1, keepdim=True).clamp(-1, 1)
    return torch.cat([1 + value.clamp_max(0), 1 - value.abs(), 1 - value.clamp_min(0)], 1)


def grid(images: Tensor, columns: int = COLUMNS) -> Tensor:
    """Images ``[N, C, H, W]`` in [0, 1] as one picture ``[3, H', W']``."""
    return make_grid(enlarge(images), nrow=columns, padding=PADDING, pad_value=GAP)


def stacks(rows: Sequence[Tensor], columns: int = COLUMNS) -> Tensor:
    """Several rows of images that belong together column by column, such as originals over reconstructions.

    Each of ``rows`` is ``[N, C, H, W]``; where N exceeds ``columns`` more stacks follow below, and of those only
    whole ones are shown.
    """
    columns = min(columns, len(rows[0]))
    whole = len(rows[0]) // columns * columns
    cut = zip(*(row[:whole].split(columns) for row in rows), strict=True)
    grids = [pad(grid(torch.cat(stack), columns), (0, 0, 0, PAIR_GAP), value=GAP) for stack in cut]
    return torch.cat(grids, dim=1)[:, :-PAIR_GAP]


def strip(rows: Sequence[Tensor], width: int = 512) -> Tensor:
    """Rows of images ``[N, C, H, W]`` at their own size, at most ``width`` pixels wide: ``[3, H', W']``."""
    image = make_grid(torch.cat([*rows]).clamp(0, 1).float(), nrow=len(rows[0]), padding=1, pad_value=GAP)
    shrink = min(1.0, width / image.shape[2])
    size = [round(side * shrink) for side in image.shape[1:]]
    return interpolate(image[None], size, mode="bilinear", antialias=True)[0] if shrink < 1 else image


def picture(image: Tensor, title: str) -> Figure:
    """One grid ``[3, H, W]`` with a title, at its own proportions."""
    _, height, width = image.shape
    inches = _inches(width)
    figure = Figure(figsize=(inches, inches * height / width + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    axes.set_title(fill(title, int(inches * 12.5)), fontsize=11)
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
    """A table of images ``[R, K, C, H, W]`` with names of its rows and columns, and of both axes."""
    figure = captioned([images], title, rows, [columns])
    figure.axes[0].set(xlabel=xlabel, ylabel=ylabel)
    return figure


def captioned(tables: Sequence[Tensor], title: str, rows: Sequence[str], captions: Sequence[Sequence[str]]) -> Figure:
    """Tables of images ``[R, K, C, H, W]`` below each other, all with the same rows, each with its own captions.

    Long captions widen the pictures, and are cut where that does not do.
    """
    grids = [grid(table.flatten(0, 1), table.shape[1]) for table in tables]
    columns = tables[0].shape[1]
    pixels = grids[0].shape[2]
    longest = max((letters(drawable(name)) for names in captions for name in names), default=0)
    inches = min(max(_inches(pixels), (min(longest, LONGEST_NAME) + 1) * LETTER * columns), WIDEST)
    captions = [[short(name, int(inches / columns / LETTER)) if name else "" for name in names] for names in captions]
    scale = inches / pixels
    heights = [g.shape[1] * scale + (0.35 if names else 0.1) for g, names in zip(grids, captions, strict=True)]
    figure = Figure(figsize=(inches + (1.4 if rows else 0.6), sum(heights) + 0.8), layout="constrained")
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, image, table, below in zip(panels, grids, tables, captions, strict=True):
        axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_anchor("N")
        axes.spines[:].set_visible(False)
        tall, wide = (side + PADDING for side in enlarge(table[0]).shape[-2:])
        for axis, names, size in ((axes.yaxis, rows, tall), (axes.xaxis, below, wide)):
            ticks = [PADDING / 2 + (i + 0.5) * size for i in range(len(names))]
            axis.set_ticks(ticks, labels=list(names), fontsize=9)
            axis.set_tick_params(length=0)
    figure.suptitle(fill(title, int(figure.get_figwidth() * 12.5)), fontsize=11)
    return figure


def _inches(pixels: int) -> float:
    """Width of a figure whose grid is so many pixels wide."""
    return min(max(pixels / INCH, 5.0), WIDEST)
