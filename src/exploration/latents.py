"""Figures of codes and latents. Shapes: N images, D latents, K boxes."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse
from torch import Tensor

from src.exploration.writing import LONGEST_NAME, Figure, legend, short
from src.metrics.posterior import ACTIVE_VARIANCE, Agreement, Misplaced

# Paul Tol's "muted" palette and black: people with any colour vision can tell them apart.
CLASS_COLOURS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#000000",
)  # fmt: skip
MARKERS = ("o", "^", "s", "D")  # for the classes beyond the tenth
MOST_CLASSES = len(CLASS_COLOURS) * len(MARKERS)  # that look different
A_COLUMN = 25  # names of classes in a column of the legend; with more classes, no name stands in the plot
IN_PLOT = 14  # letters of a name there
ACTIVE, PASSIVE = "#0072B2", "#BBBBBB"
AGREES = 0.05  # Kolmogorov-Smirnov distance, and share of misplaced codes beyond chance, that count as agreement
LEVEL = 1.63  # KS distance times the root of N that one normal sample in a hundred exceeds
ENOUGH = 200  # codes; with fewer, the title does not judge their agreement
BINS = 50  # Yin & Wang 2023
LABEL = (0.12, 0.035)  # width and height of a class name in a scatter plot, in parts of the plot


def scatter(points: Tensor, labels: Tensor, classes: Sequence[str], title: str, axes_names: tuple[str, str]) -> Figure:
    """Draw points ``[N, 2]`` coloured by class (label -1: none); up to 25 classes are also named at their median.

    With more than 40 classes the largest are named, and the others are grey.
    """
    counts = Counter(labels[labels >= 0].tolist())
    named = sorted(label for label, _ in counts.most_common(MOST_CLASSES))
    rest = ~torch.isin(labels, torch.tensor(named, dtype=labels.dtype))
    columns = -(-len(named) // A_COLUMN)
    figure = Figure(figsize=(8.5 + 2 * max(0, columns - 1), 7), layout="constrained")
    axes = figure.subplots()
    dots = {"s": float(np.clip(20_000 / len(points), 4, 30)), "alpha": 0.5, "linewidths": 0}
    handles, names = [], []
    if rest.any():
        handles.append(axes.scatter(*points[rest].T, c=PASSIVE, **dots))
        names.append(f"{len(counts) - len(named)} more classes" if len(counts) > len(named) else "no class")
    for number, label in enumerate(named):
        colour, marker = _style(label if len(counts) == len(named) else number)
        handles.append(axes.scatter(*points[labels == label].T, c=colour, marker=marker, **dots))
        names.append(short(classes[label], LONGEST_NAME))
    low, high = points.min(0).values, points.max(0).values
    extent = (high - low).max().clamp_min(1e-6)  # codes of equal images differ by rounding errors alone
    axes.update_datalim([*((low + high) / 2 + torch.tensor([[-0.5], [0.5]]) * extent).tolist()])
    if named and columns == 1:
        medians = torch.stack([points[labels == label].median(0).values for label in named])
        for label, place in zip(named, apart(medians / extent, LABEL) * extent, strict=True):
            box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": _style(label)[0], "alpha": 0.85}
            axes.text(*place.tolist(), short(classes[label], IN_PLOT), fontsize=9, ha="center", va="center", bbox=box)
    axes.set(title=title, xlabel=axes_names[0], ylabel=axes_names[1])
    axes.set_aspect("equal", adjustable="datalim")  # else codes on a line give axes without height
    axes.grid(alpha=0.3)
    if len(handles) > 1:
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "ncols": max(1, columns)}
        for handle in legend(axes, handles, names, fontsize=9, frameon=False, **beside).legend_handles:
            handle.set_alpha(1)
            handle.set_sizes([30])
    return figure


def dots(points: Tensor, labels: Tensor, size: int) -> Tensor:
    """Draw points ``[N, 2]`` as dots coloured as in :func:`scatter`, on a square of ``size`` pixels: ``[3, H, W]``."""
    image = torch.ones(3, size, size)
    low, high = points.min(0).values, points.max(0).values
    extent = (high - low).max().clamp_min(1e-6)
    place = ((points - (low + high) / 2) / extent * 0.96 + 0.5).mul(size - 1).round().long().clamp(0, size - 2)
    hexadecimal = [_style(label)[0] if label >= 0 else PASSIVE for label in labels.tolist()]
    colours = torch.tensor([[int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)] for text in hexadecimal]).T
    for right in (0, 1):
        for down in (0, 1):
            image[:, size - 2 - place[:, 1] + down, place[:, 0] + right] = colours
    return image


def _style(number: int) -> tuple[str, str]:
    """Return colour and marker of a class."""
    return CLASS_COLOURS[number % len(CLASS_COLOURS)], MARKERS[number // len(CLASS_COLOURS) % len(MARKERS)]


def apart(places: Tensor, size: tuple[float, float], rounds: int = 100) -> Tensor:
    """Move centres ``[K, 2]`` of boxes of that width and height up and down until no box covers another."""
    moved = places.clone()
    for _ in range(rounds):
        for i in range(len(moved)):
            for j in range(i):
                across, up = (moved[i] - moved[j]).tolist()
                if abs(across) < size[0] and abs(up) < size[1] - 1e-6:
                    step = (size[1] - abs(up)) / 2 * (1 if up >= 0 else -1)
                    moved[i, 1] += step
                    moved[j, 1] -= step
    return moved


def rate_bars(rate: Tensor, variance: Tensor, title: str) -> Figure:
    """Draw the rate of each latent ``[D]`` in nats, largest first, active ones coloured."""
    order = torch.argsort(rate, descending=True)
    active = variance[order] > ACTIVE_VARIANCE
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(order))
    width = 0.8 if len(order) <= 100 else 1.0
    for mask, colour, name in ((active, ACTIVE, "active"), (~active, PASSIVE, "not active")):
        if mask.any():
            axes.bar(
                places[mask.numpy()], rate[order][mask].numpy(), width, color=colour, label=f"{name}: {mask.sum()}"
            )
    if len(order) <= 32:
        axes.set_xticks(places, [str(i) for i in order.tolist()], fontsize=8)
        axes.set_xlabel("latent")
    else:
        axes.set_xlabel("latents, by rate")
    axes.set(ylabel="rate, nats per image", title=title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return figure


def against_prior(
    z: Tensor,
    latents: tuple[int, int],
    agreements: Sequence[Agreement],
    together: Misplaced,
    prior: Tensor | None = None,
    *,
    fitted: bool = False,
) -> Figure:
    """Draw a 2-D histogram of codes ``[N, 2]`` of two latents with 50 bins, beside draws from the prior.

    There are as many draws from N(0, I); draws ``[M, 2]`` from another prior count N / M each. A ``fitted`` one is the
    Gaussian of an autoencoder's codes: that it agrees in each latent says little.
    """
    edge = max(4.0, *(codes.abs().quantile(0.999).item() for codes in (z, prior) if codes is not None))
    edges = np.linspace(-edge, edge, BINS + 1)
    drawn = np.random.default_rng(0).standard_normal(z.shape) if prior is None else prior.numpy()
    counts = [np.histogram2d(*pair.T, bins=edges)[0].T * (len(z) / len(pair)) for pair in (z.numpy(), drawn)]
    figure = Figure(figsize=(11.5, 6), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    if fitted:
        names = ("codes", "Gaussian fitted to training codes")
    else:
        names = ("codes: draws from q(z|x)", "standard normal" if prior is None else "prior")
    for axes, count, title in zip(panels, counts, names, strict=True):
        mesh = axes.pcolormesh(edges, edges, count, cmap="viridis", vmax=max(c.max() for c in counts))
        if prior is None:
            _circles(axes)
        axes.set(title=title, xlabel=f"latent {latents[0]}", aspect="equal")
    panels[0].set_ylabel(f"latent {latents[1]}")
    figure.colorbar(mesh, ax=panels, label=f"images per bin, of {len(z):,}", shrink=0.8)
    limit = max(AGREES, LEVEL / len(z) ** 0.5)
    agree = max(a.ks for a in agreements) <= limit and together.share <= together.by_chance + AGREES
    figures = "; ".join(
        f"latent {latent}: mean {a.mean:+.2f}, std {a.std:.2f}, KS {a.ks:.3f}"
        for latent, a in zip(latents, agreements, strict=True)
    )
    word = "agree" if agree else "DISAGREE"
    plane = f"{100 * together.share:.0f} % of the codes misplaced ({100 * together.by_chance:.0f} % by chance)"
    if len(z) < ENOUGH:
        word, plane = "cannot be compared", f"{len(z)} images are too few to say"
    other = "the Gaussian fitted to codes" if fitted else "the prior"
    title = f"The two latents that say most {word} with {other}. {figures};\ntogether: {plane}"
    figure.suptitle(title, fontsize=11)
    return figure


def _circles(axes: Axes) -> None:
    """Mark one and two standard deviations of the prior."""
    for radius in (1, 2):
        axes.add_patch(Ellipse((0, 0), 2 * radius, 2 * radius, fill=False, ec="white", ls="--", lw=0.8))
