"""Draw the figures of a sweep: tables in, Matplotlib figures out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from src.exploration.writing import LONGEST_NAME, Figure, name_points, short
from src.reporting.statistics import FEW_SEEDS
from src.reporting.style import (
    CROWDED,
    MOST_LINES,
    MOST_VALUES,
    OKABE_ITO,
    WIDE_RANGE,
    curves,
    joined,
    look_of,
    numeric,
    ordered,
    place,
    shown,
)

MOST_WRITTEN = 18  # points up to which all are named
KL_WEIGHT = "model.kl_weight"
# Column of a cost: the label of its axis, and the factor to the label's unit.
COST_AXES = {
    "whole_seconds": ("time of a point, start-up included (minutes)", 1 / 60),
    "wall_seconds": ("time of the training alone (minutes)", 1 / 60),
    "train_images_per_second": ("training speed (images/s)", 1.0),
    "memory_mib": ("peak memory (MiB)", 1.0),
    "trainable_parameters": ("trainable parameters", 1.0),
}


def rate_distortion(
    table: pd.DataFrame, points: pd.DataFrame, keys: Sequence[str], names: Mapping[str, str], metric: str = "elbo"
) -> Figure:
    """Draw the rate-distortion plane of a sweep (Alemi et al. 2018, arXiv 1711.00464, figure 1).

    Each latent size or depth has a curve with the KL weights written along it; grey lines join equal elbos.

    Args:
        table: configurations with ``test_rate``, ``test_distortion`` (nats per image), their ``_ci`` and ``seeds``.
        points: the single points.
        keys: swept keys.
        names: short names of the keys.
        metric: name of the elbo.
    """
    figure = Figure(figsize=(8.5, 6.2), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="rate: KL of the posteriors to the prior (nats per image)")
    axes.set(
        ylabel=f"{metric.replace('elbo', 'distortion')} (nats per image)", title="Rate and distortion on the test split"
    )
    bars = _sure(table)
    known = bars.test_rate, bars.test_distortion, bars.test_distortion_ci, bars.test_rate_ci
    axes.errorbar(*known, fmt="none", ecolor="0.6", lw=0.8)
    axes.plot(points.test_rate, points.test_distortion, ".", ms=3, color="0.6", zorder=1)
    look = look_of(table, [k for k in keys if k != KL_WEIGHT], names)
    single = [table.iloc[[i]] for i in range(len(table))]
    lines = curves(table, KL_WEIGHT, keys) if joined(table, KL_WEIGHT, keys) else single
    for part in lines:
        axes.plot(part.test_rate, part.test_distortion, lw=1.5, ms=6, **look.of(part.iloc[0]))
    written = KL_WEIGHT in keys and table[KL_WEIGHT].nunique() <= MOST_VALUES
    axes.margins(0.1)
    _iso_elbo(axes)
    note = f"Grey: lines of equal −{metric}; lower left is better." + (" Numbers: kl_weight." if written else "")
    figure.supxlabel(note, fontsize=9, color="0.35")
    if written:
        name_points(figure, {axes: _weights(lines)}, fontsize=8, color="0.25")
    look.legend(axes, lines is not single)
    return figure


def _weights(lines: Sequence[pd.DataFrame]) -> list[tuple[float, float, str]]:
    """Return rate, distortion and KL weight of all points where they are few, else of the longest line."""
    longest = max(lines, key=lambda part: part.test_rate.max() - part.test_rate.min())
    written = pd.concat(lines) if sum(len(part) for part in lines) <= MOST_WRITTEN else longest
    return [(row.test_rate, row.test_distortion, shown(row[KL_WEIGHT])) for _, row in written.iterrows()]


def _iso_elbo(axes: Axes) -> None:
    """Draw lines of equal distortion + rate."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    left = max(0.0, left)  # a rate is not negative
    axes.set_xlim(left, right), axes.set_ylim(low, high)
    for level in MaxNLocator(9).tick_values(low + left, high + right):
        if low + left < level < high + right:
            axes.plot([left, right], [level - left, level - right], color="0.85", lw=0.8, zorder=0)
            x = left + 0.01 * (right - left)
            inside = low < level - x < high
            x, y = (x, level - x) if inside else (level - high + 0.01 * (high - low), high - 0.01 * (high - low))
            if left <= x < right:
                axes.annotate(f"{level:g}", (x, y), fontsize=7.5, color="0.55", va="top", zorder=0)


def _sure(table: pd.DataFrame) -> pd.DataFrame:
    """Return the configurations with enough seeds to draw their interval."""
    return table[table.seeds >= FEW_SEEDS]


def by_key(
    table: pd.DataFrame,
    points: pd.DataFrame,
    keys: Sequence[str],
    names: Mapping[str, str],
    column: str,
    label: str,
    title: str,
) -> Figure:
    """Draw a metric against each swept key: a panel a key, a line for each combination of the others.

    Args:
        table: configurations with ``column``, ``<column>_ci`` and ``seeds``.
        points: the single points.
        keys: swept keys.
        names: short names of the keys.
        column: column of the metric.
        label: name of the metric, with its unit.
        title: title of the figure.
    """
    wide = min(3, len(keys))
    tall = math.ceil(len(keys) / wide)
    figure = Figure(figsize=(4.6 * wide + 0.6, 3.7 * tall + 0.5), layout="constrained")
    panels = figure.subplots(tall, wide, squeeze=False, sharey=True).flatten()
    for axes, key in zip(panels, keys, strict=False):
        _panel(axes, table, points, key, keys, names, column)
        axes.set(xlabel=names[key])
        axes.grid(alpha=0.25)
    for axes in panels[len(keys) :]:
        axes.set_axis_off()
    for axes in panels[::wide]:
        axes.set_ylabel(label)
    figure.suptitle(title)
    return figure


def _panel(
    axes: Axes,
    table: pd.DataFrame,
    points: pd.DataFrame,
    key: str,
    keys: Sequence[str],
    names: Mapping[str, str],
    column: str,
) -> dict[Any, float]:
    """Draw one column against one key; return the place of each value on the x axis."""
    values = ordered(table[key])
    table = table[table[key].isin(values)]
    where = place(axes, values)
    lines = curves(table, key, keys) if joined(table, key, keys) and len(values) <= 2 * MOST_VALUES else []
    look = look_of(table, [k for k in keys if k != key], names)
    if not lines:
        axes.plot([where[v] for v in table[key]], table[column], "o", ms=4, color=OKABE_ITO[0], alpha=0.7)
        return where
    many, between = len(lines) > MOST_LINES, numeric(values)
    points = points[points[key].isin(values)]
    axes.plot([where[v] for v in points[key]], points[column], ".", ms=3, color="0.6", zorder=1)
    for part in lines:
        x = [where[v] for v in part[key]]
        style = {"color": "0.7", "marker": ".", "ls": "-"} if many else look.of(part.iloc[0])
        style |= {} if between else {"ls": "none"}
        axes.plot(x, part[column], lw=1.3, ms=5, **style)
        bars = _sure(part)
        if not many and len(bars):
            at = [where[v] for v in bars[key]]
            axes.errorbar(at, bars[column], bars[f"{column}_ci"], fmt="none", ecolor=style["color"], lw=0.8, capsize=2)
    if many:
        mean = table.groupby(table[key].map(where))[column].mean()
        axes.plot(mean.index, mean, "o-" if between else "o", color="black", lw=1.8, label="mean over the others")
        axes.legend(fontsize=8)
    else:
        look.legend(axes, between)
    return where


def cost(
    table: pd.DataFrame,
    quality: str,
    label: str,
    fronts: Mapping[str, Sequence[int]],
    keys: Sequence[str],
    names: Mapping[str, str],
) -> Figure:
    """Draw quality against each cost, with the configurations on the Pareto fronts as diamonds.

    All configurations are named by their values where they are few, else only those on the fronts.

    Args:
        table: configurations.
        quality: column of the quality; less is better.
        label: name of the quality, with its unit.
        fronts: for each cost, the positions of the configurations on its Pareto front, by rising cost.
        keys: swept keys.
        names: short names of the keys.
    """
    wide = 2
    figure = Figure(figsize=(10, 3.6 * math.ceil(len(fronts) / wide) + 0.4), layout="constrained")
    panels = figure.subplots(math.ceil(len(fronts) / wide), wide, squeeze=False, sharey=True).flatten()
    called = [", ".join(short(shown(row[key]), LONGEST_NAME) for key in keys) for _, row in table.iterrows()]
    named = {}
    for axes, (column, front) in zip(panels, fronts.items(), strict=False):
        x, y = _cost_panel(axes, table, quality, column, front)
        others = [i for i in range(len(table)) if i not in front] if len(table) <= MOST_WRITTEN else []
        named[axes] = [(x.iloc[i], y.iloc[i], called[i]) for i in (*front, *others)]
    for axes in panels[len(fronts) :]:
        axes.set_axis_off()
    for axes in panels[::wide]:
        axes.set_ylabel(label)
    figure.suptitle("Cost and quality; diamonds: the Pareto front")
    figure.supxlabel(f"Names: {', '.join(names[key] for key in keys)}.", fontsize=9, color="0.35")
    name_points(figure, named, fontsize=7.5, color="0.25")
    return figure


def _cost_panel(
    axes: Axes, table: pd.DataFrame, quality: str, column: str, front: Sequence[int]
) -> tuple[pd.Series, pd.Series]:
    """Draw quality against one cost; return the coordinates of the configurations."""
    name, scale = COST_AXES[column]
    x, y = table[column] * scale, table[quality]
    axes.plot(x, y, "o", ms=5, color=OKABE_ITO[5], mec="0.3", mew=0.4)
    axes.plot(x.iloc[front], y.iloc[front], "D", ms=7, color=OKABE_ITO[3], mfc="none", mew=1.5)
    axes.set(xlabel=name)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if x.max() / max(x.min(), 1e-9) >= WIDE_RANGE:
        axes.set_xscale("log")
    axes.margins(0.12)
    return x, y


def latents(table: pd.DataFrame, points: pd.DataFrame, keys: Sequence[str], names: Mapping[str, str]) -> Figure:
    """Draw active latents and the rate against the KL weight, or against the first key where that is not swept.

    Args:
        table: configurations with ``active_latents``, ``latent_dim``, ``test_rate`` and ``seeds``.
        points: the single points.
        keys: swept keys.
        names: short names of the keys.
    """
    along = KL_WEIGHT if KL_WEIGHT in keys else keys[0]
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    where = _panel(left, table, points, along, keys, names, "active_latents")
    _panel(right, table, points, along, keys, names, "test_rate")
    sizes = ordered(table.latent_dim)
    written = math.inf
    for size in reversed(sizes) if len(sizes) <= MOST_VALUES else ():
        left.axhline(size, color="0.8", lw=0.8, zorder=0)
        if written - size >= CROWDED * sizes[-1]:  # beside the panel, where no marker is
            beside = {"xytext": (4, 0), "textcoords": "offset points", "ha": "left", "va": "center"}
            at = {"xycoords": ("axes fraction", "data"), "fontsize": 7.5, "color": "0.5"}
            left.annotate(f"all of {size:g}", (1, size), **at, **beside)
            written = size
    gone = table[table.active_latents == 0]
    if len(gone):
        left.plot([where[v] for v in gone[along]], gone.active_latents, "x", ms=10, mew=2, color="#B00020")
    left.set(ylabel="active latents", ylim=(-0.03 * table.active_latents.max() - 0.05, None))
    right.set(ylabel="rate (nats per image)", ylim=(0, 1.05 * right.get_ylim()[1]))
    if right.get_legend() is not None and left.get_legend() is not None:
        left.get_legend().remove()
    for axes in (left, right):
        axes.set(xlabel=names[along])
        axes.grid(alpha=0.25)
    figure.suptitle("Use of the latents on the test split" + ("; red crosses: complete collapse" if len(gone) else ""))
    return figure
