"""Pictures: tensors in, matplotlib figures or image grids out. Knows no Trainer and no file."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.nn.functional import pad
from torchvision.utils import make_grid

# Okabe & Ito's palette: told apart with any colour vision.
COLOURS = {"elbo": "#0072B2", "distortion": "#D55E00", "rate": "#009E73"}
LEGEND = {"train": "training", "val": "validation"}
COLUMNS = 8
PAIR_GAP = 14  # pixels between a row of reconstructions and the next originals
GAP = 1.0  # white between pictures: X-rays and digits have black borders


def grid(images: Tensor, columns: int = COLUMNS) -> Tensor:
    """Images ``[N, C, H, W]`` in [0, 1] as one picture ``[3, H', W']``; tiny ones are enlarged by whole pixels."""
    factor = max(1, 64 // images.shape[-1])
    large = images.clamp(0, 1).float().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return make_grid(large, nrow=columns, padding=2, pad_value=GAP)


def pairs(originals: Tensor, reconstructions: Tensor, columns: int = COLUMNS) -> Tensor:
    """Rows of originals, each over the row of its reconstructions, as one picture.

    Both ``[N, C, H, W]``; of more than one row only whole ones are shown.
    """
    columns = min(columns, len(originals))
    whole = len(originals) // columns * columns
    rows = zip(originals[:whole].split(columns), reconstructions[:whole].split(columns), strict=True)
    grids = [pad(grid(torch.cat(pair), columns), (0, 0, 0, PAIR_GAP), value=GAP) for pair in rows]
    return torch.cat(grids, dim=1)


def picture(image: Tensor, title: str) -> Figure:
    """One grid ``[3, H, W]`` with a title, at its own proportions."""
    _, height, width = image.shape
    figure = Figure(figsize=(8, 8 * height / width + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(image.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    axes.set_title(title, fontsize=11)
    axes.axis("off")
    return figure


def loss_curves(epochs: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> Figure:
    """Negative elbo and distortion by epoch, and beside them the rate, which is far smaller.

    Args:
        epochs: one mapping an epoch from ``epoch``, ``train/elbo``, ``val/rate`` and so on to nats per image.
        names: what to call ``elbo`` and ``distortion`` (a pseudo-likelihood is called one).
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, title, quantities in zip(
        panels, ("Negative ELBO and distortion", "Rate"), (("elbo", "distortion"), ("rate",)), strict=True
    ):
        for quantity in quantities:
            sign, name = (-1, f"−{names['elbo']}") if quantity == "elbo" else (1, names.get(quantity, quantity))
            for stage, style in (("train", "--"), ("val", "-")):
                tag = f"{stage}/{quantity}"
                points = [(epoch["epoch"], sign * epoch[tag]) for epoch in epochs if tag in epoch]
                if points:
                    label = f"{name}, {LEGEND[stage]}"
                    axes.plot(*zip(*points, strict=True), style, color=COLOURS[quantity], label=label, marker=".")
        axes.set(xlabel="epoch", ylabel="nats per image", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    return figure
