"""Figures of a sweep: tables in, matplotlib figures out.

Lines are told apart by colour *and* marker, in palettes that any colour vision tells apart.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("-", "--", ":", "-.")
MOST_VALUES = 8  # a key with more is a search's: its points are not joined by lines
MOST_LINES = 14  # in one panel
FEW_SEEDS = 3  # below this an interval is wider than the axes: the points themselves are drawn
MOST_WRITTEN = 18  # KL weights written beside their points
WIDE_RANGE = 8  # largest over smallest value, from which an axis is logarithmic
KL_WEIGHT = "model.kl_weight"
CURVE_KEYS = ("model.latent_dim", "model.depth", "model")  # what a curve stands for, in this order


@dataclass
class Look:
    """How the lines of one value of each key look.

    Attributes:
        colour: of each value of the first key.
        shape: marker and line style of each value of the second.
    """

    keys: list[str]
    names: Mapping[str, str]
    values: dict[str, list[Any]]

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Colour, marker and style of a configuration."""
        places = [self.values[key].index(row[key]) for key in self.keys[:2]] + [0, 0]
        first, second = places[0], places[1]
        colours = palette(self.values[self.keys[0]]) if self.keys else OKABE_ITO
        marker = MARKERS[(second if len(self.keys) > 1 else first) % len(MARKERS)]
        return {"color": colours[first % len(colours)], "marker": marker, "ls": STYLES[second % len(STYLES)]}

    def legend(self, axes: Axes) -> None:
        """One entry a value."""
        handles = []
        for at, key in enumerate(self.keys[:2]):
            for value in self.values[key]:
                look = self.of({k: self.values[k][0] for k in self.keys[:2]} | {key: value})
                look |= {"color": "0.35"} if at == 1 else {}
                handles.append(Line2D([], [], label=f"{self.names[key]} = {shown(value)}", **look))
        if handles and len(handles) <= MOST_LINES:
            axes.legend(handles=handles, fontsize=9)


def palette(values: Sequence[Any]) -> Sequence[Any]:
    """Ordered colours for numbers, distinct ones for names."""
    if all(isinstance(value, int | float) for value in values) and len(values) > 2:
        return matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, len(values)))
    return OKABE_ITO


def shown(value: Any) -> str:
    """A value as people write it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def ordered(values: pd.Series) -> list[Any]:
    """Different values, sorted where they are numbers."""
    different = list(dict.fromkeys(v for v in values if not pd.isna(v)))
    return sorted(different) if all(isinstance(v, int | float) for v in different) else different


def look_of(table: pd.DataFrame, keys: Sequence[str], names: Mapping[str, str]) -> Look:
    """Looks for the keys that have few values, latent size first, then depth, then the model."""
    values = {key: ordered(table[key]) for key in keys}
    rank = {key: CURVE_KEYS.index(key) if key in CURVE_KEYS else len(CURVE_KEYS) for key in keys}
    few = [key for key in sorted(keys, key=rank.get) if 1 < len(values[key]) <= MOST_VALUES]
    return Look(few, names, values)


def curves(table: pd.DataFrame, along: str, keys: Sequence[str]) -> list[pd.DataFrame]:
    """The configurations of each line: all keys equal but ``along``, sorted by that."""
    others = [key for key in keys if key != along]
    groups = (
        [part for _, part in table.groupby([table[k].map(repr) for k in others], sort=False)] if others else [table]
    )
    return [part.sort_values(along, key=lambda v: v.map(ordered(table[along]).index)) for part in groups]


def joined(table: pd.DataFrame, along: str, keys: Sequence[str]) -> bool:
    """Whether lines make sense: every other key has few values."""
    return along in table and all(table[k].nunique() <= MOST_VALUES for k in keys if k != along)


def rate_distortion(
    table: pd.DataFrame, points: pd.DataFrame, keys: Sequence[str], names: Mapping[str, str], metric: str = "elbo"
) -> Figure:
    """The rate-distortion plane of a sweep (Alemi et al. 2018, arXiv 1711.00464, figure 1).

    A curve for each latent size or depth, the KL weight written along it; on a grey line the elbo is the same.

    Args:
        table: configurations with ``test_rate``, ``test_distortion`` (nats per image), their ``_ci`` and ``seeds``.
        points: the points that they are means of.
        keys: swept keys.
        names: what to call them.
        metric: what to call the elbo.
    """
    figure = Figure(figsize=(8.5, 6.2), layout="constrained")
    axes = figure.subplots()
    prefix = metric.removesuffix("elbo")
    axes.set(xlabel="rate: KL of the posteriors to the prior (nats per image)")
    axes.set(ylabel=f"{prefix}distortion (nats per image)", title="Rate and distortion on the test split")
    bars = _sure(table)
    axes.errorbar(
        bars.test_rate,
        bars.test_distortion,
        bars.test_distortion_ci,
        bars.test_rate_ci,
        fmt="none",
        ecolor="0.6",
        lw=0.8,
    )
    axes.plot(points.test_rate, points.test_distortion, ".", ms=3, color="0.6", zorder=1)
    look = look_of(table, [k for k in keys if k != KL_WEIGHT], names)
    lines = (
        curves(table, KL_WEIGHT, keys)
        if joined(table, KL_WEIGHT, keys)
        else [table.iloc[[i]] for i in range(len(table))]
    )
    for part in lines:
        style = look.of(part.iloc[0])
        axes.plot(part.test_rate, part.test_distortion, lw=1.5, ms=6, **style)
    if KL_WEIGHT in keys and table[KL_WEIGHT].nunique() <= MOST_VALUES:
        for _, row in _outer(lines).iterrows():
            axes.annotate(
                shown(row[KL_WEIGHT]),
                (row.test_rate, row.test_distortion),
                (5, 5),
                fontsize=8,
                textcoords="offset points",
                color="0.25",
            )
    axes.margins(0.1)
    _iso_elbo(axes, f"−{metric}")
    look.legend(axes)
    note = "Grey: lines of equal elbo, labelled with its negative; lower left is better." + (
        " Numbers: kl_weight." if KL_WEIGHT in keys else ""
    )
    figure.supxlabel(note, fontsize=9, color="0.35")
    return figure


def _outer(lines: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The points whose weight is written: all where they are few, else those of the longest line."""
    if sum(len(part) for part in lines) <= MOST_WRITTEN:
        return pd.concat(lines)
    return max(lines, key=lambda part: part.test_rate.max() - part.test_rate.min())


def _iso_elbo(axes: Axes, name: str) -> None:
    """Lines on which distortion + rate is the same."""
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
    """Configurations with enough seeds for an interval that says something."""
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
    """A metric against each swept key, one panel a key, one line for each combination of the others.

    Args:
        table: configurations with ``column``, ``<column>_ci`` and ``seeds``.
        points: the points that they are means of.
        keys: swept keys.
        names: what to call them.
        column: the metric.
        label: what to call it, with its unit.
        title: of the figure.
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
) -> None:
    values = ordered(table[key])
    table = table[table[key].isin(values)]
    where = _axis(axes, values)
    lines = curves(table, key, keys) if joined(table, key, keys) and len(values) <= 2 * MOST_VALUES else []
    look = look_of(table, [k for k in keys if k != key], names)
    if not lines:
        axes.plot([where[v] for v in table[key]], table[column], "o", ms=4, color=OKABE_ITO[0], alpha=0.7)
        return
    many = len(lines) > MOST_LINES
    points = points[points[key].isin(values)]
    axes.plot([where[v] for v in points[key]], points[column], ".", ms=3, color="0.6", zorder=1)
    for part in lines:
        x = [where[v] for v in part[key]]
        style = {"color": "0.7", "marker": ".", "ls": "-"} if many else look.of(part.iloc[0])
        axes.plot(x, part[column], lw=1.3, ms=5, **style)
        bars = _sure(part)
        if not many and len(bars):
            at = [where[v] for v in bars[key]]
            axes.errorbar(at, bars[column], bars[f"{column}_ci"], fmt="none", ecolor=style["color"], lw=0.8, capsize=2)
    if many:
        mean = table.groupby(table[key].map(where))[column].mean()
        axes.plot(mean.index, mean, "o-", color="black", lw=1.8, label="mean over the others")
        axes.legend(fontsize=8)
    else:
        look.legend(axes)


def _axis(axes: Axes, values: Sequence[Any]) -> dict[Any, float]:
    """Set the scale of the x axis for a key's values; where each is drawn."""
    if not all(isinstance(v, int | float) for v in values):
        axes.set_xticks(range(len(values)), [shown(v) for v in values], rotation=20 if len(values) > 3 else 0)
        return {value: place for place, value in enumerate(values)}
    if len(values) > 1 and values[0] > 0 and values[-1] / values[0] >= WIDE_RANGE:
        axes.set_xscale("log")
    if len(values) <= MOST_VALUES:
        axes.set_xticks(values, [shown(v) for v in values])
        axes.minorticks_off()
    return {value: value for value in values}


def cost(table: pd.DataFrame, quality: str, label: str, fronts: Mapping[str, Sequence[int]]) -> Figure:
    """Quality against what it costs, with the configurations that no other one beats in both.

    Args:
        table: configurations.
        quality: column of the quality, better where larger.
        label: what to call it.
        fronts: for each column of costs the positions on its Pareto front, by rising cost.
    """
    titles = {
        "wall_seconds": ("wall time (minutes)", 1 / 60),
        "train_images_per_second": ("training speed (images/s)", 1.0),
        "memory_mib": ("peak memory (MiB)", 1.0),
        "trainable_parameters": ("trainable parameters", 1.0),
    }
    wide = 2
    figure = Figure(figsize=(10, 3.6 * math.ceil(len(fronts) / wide) + 0.4), layout="constrained")
    panels = figure.subplots(math.ceil(len(fronts) / wide), wide, squeeze=False, sharey=True).flatten()
    for axes, (column, front) in zip(panels, fronts.items(), strict=False):
        name, scale = titles[column]
        x, y = table[column] * scale, table[quality]
        axes.plot(x, y, "o", ms=5, color=OKABE_ITO[5], mec="0.3", mew=0.4)
        axes.plot(x.iloc[front], y.iloc[front], "D-", ms=7, lw=1.2, color=OKABE_ITO[3], mfc="none", mew=1.5)
        axes.set(xlabel=name)
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if x.max() / max(x.min(), 1e-9) >= WIDE_RANGE:
            axes.set_xscale("log")
    for axes in panels[len(fronts) :]:
        axes.set_axis_off()
    for axes in panels[::wide]:
        axes.set_ylabel(label)
    figure.suptitle("Cost and quality; diamonds: no other configuration is both cheaper and better")
    return figure


def latents(table: pd.DataFrame, points: pd.DataFrame, keys: Sequence[str], names: Mapping[str, str]) -> Figure:
    """Active latents and the rate against the KL weight, or else against the first key.

    Args:
        table: configurations with ``active_latents``, ``latent_dim``, ``test_rate`` and ``seeds``.
        points: the points that they are means of.
        keys: swept keys.
        names: what to call them.
    """
    along = KL_WEIGHT if KL_WEIGHT in keys else keys[0]
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, table, points, along, keys, names, "active_latents")
    _panel(right, table, points, along, keys, names, "test_rate")
    for size in ordered(table.latent_dim)[-MOST_VALUES:]:
        left.axhline(size, color="0.8", lw=0.8, zorder=0)
        left.annotate(
            f"all of {size:g}",
            (1, size),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=7.5,
            color="0.5",
        )
    gone = table[table.active_latents == 0]
    if len(gone) and all(isinstance(v, int | float) for v in gone[along]):
        left.plot(gone[along], gone.active_latents, "x", ms=10, mew=2, color="#B00020")
    left.set(ylabel="active latents", ylim=(-0.03 * table.latent_dim.max(), None))
    right.set(ylabel="rate (nats per image)", ylim=(0, None))
    if right.get_legend() is not None and left.get_legend() is not None:
        left.get_legend().remove()
    for axes in (left, right):
        axes.set(xlabel=names[along])
        axes.grid(alpha=0.25)
    figure.suptitle("Use of the latents on the test split" + ("; red crosses: complete collapse" if len(gone) else ""))
    return figure
