"""The look of lines and axes in a sweep's figures.

Lines differ in colour *and* marker, and the palettes suit every colour vision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from src.exploration.writing import LONGEST_NAME, legend, letters, short

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("-", "--", ":", "-.")
MOST_VALUES = 8  # a key with more comes from a search: its points are not joined by lines
MOST_LINES = 14  # in one panel
CROWDED = 0.05  # share of an axis: labels of closer values overlap
A_ROW = 40  # letters that fit side by side below an axis
MANY_NAMES = 14  # names below an axis, from which on they are upright
WIDE_RANGE = 8  # largest over smallest value, from which an axis is logarithmic
CURVE_KEYS = ("model.latent_dim", "model.depth", "model")  # a curve is drawn for each value, in this preference


@dataclass
class Look:
    """Colour, marker and line style of the values of two keys.

    Attributes:
        keys: keys that lines differ in: the first sets the colour, the second marker and line style.
        names: short names of the keys.
        values: the values of each key, in order.
    """

    keys: list[str]
    names: Mapping[str, str]
    values: dict[str, list[Any]]

    def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return Matplotlib's colour, marker and line style for a configuration."""
        places = [self.values[key].index(row[key]) for key in self.keys[:2]] + [0, 0]
        first, second = places[0], places[1]
        colours = palette(self.values[self.keys[0]]) if self.keys else OKABE_ITO
        marker = MARKERS[(second if len(self.keys) > 1 else first) % len(MARKERS)]
        return {"color": colours[first % len(colours)], "marker": marker, "ls": STYLES[second % len(STYLES)]}

    def legend(self, axes: Axes, lines: bool = True) -> None:
        """Draw one entry for each value, without a line where points are not joined."""
        handles, names = [], []
        for at, key in enumerate(self.keys[:2]):
            for value in self.values[key]:
                look = self.of({k: self.values[k][0] for k in self.keys[:2]} | {key: value})
                look |= {"color": "0.35"} if at == 1 else {}
                look |= {} if lines else {"ls": "none"}
                handles.append(Line2D([], [], **look))
                names.append(f"{short(self.names[key], LONGEST_NAME)} = {short(shown(value), LONGEST_NAME)}")
        if handles and len(handles) <= MOST_LINES:
            legend(axes, handles, names, fontsize=9)


def numeric(values: Sequence[Any]) -> bool:
    """Return whether values are numbers, so that lines between them make sense; choices of a group are not."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def palette(values: Sequence[Any]) -> Sequence[Any]:
    """Return ordered colours for numbers and distinct ones for names."""
    if numeric(values) and len(values) > 2:
        return matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, len(values)))
    return OKABE_ITO


def shown(value: Any) -> str:
    """Write a value for people: floats with 4 digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def ordered(values: pd.Series) -> list[Any]:
    """Return the distinct values, sorted where they are numbers."""
    different = list(dict.fromkeys(v for v in values if not pd.isna(v)))
    return sorted(different) if numeric(different) else different


def look_of(table: pd.DataFrame, keys: Sequence[str], names: Mapping[str, str]) -> Look:
    """Choose looks for the keys that have few values: latent size first, then depth, then the model."""
    values = {key: ordered(table[key]) for key in keys}
    rank = {key: CURVE_KEYS.index(key) if key in CURVE_KEYS else len(CURVE_KEYS) for key in keys}
    few = [key for key in sorted(keys, key=rank.get) if 1 < len(values[key]) <= MOST_VALUES]
    return Look(few, names, values)


def curves(table: pd.DataFrame, along: str, keys: Sequence[str]) -> list[pd.DataFrame]:
    """Return the configurations of each line: they differ in ``along`` alone and are sorted by it."""
    others = [key for key in keys if key != along]
    groups = (
        [part for _, part in table.groupby([table[k].map(repr) for k in others], sort=False)] if others else [table]
    )
    return [part.sort_values(along, key=lambda v: v.map(ordered(table[along]).index)) for part in groups]


def joined(table: pd.DataFrame, along: str, keys: Sequence[str]) -> bool:
    """Return whether to join points along a key: every other key has few values."""
    return along in table and all(table[k].nunique() <= MOST_VALUES for k in keys if k != along)


def place(axes: Axes, values: Sequence[Any]) -> dict[Any, float]:
    """Set the scale of the x axis for a key's values and return the place of each.

    Names are placed at equal distances, and so are a few numbers whose labels would overlap on an axis.
    """
    numbers = numeric(values)
    wide = numbers and len(values) > 1 and values[0] > 0 and values[-1] / values[0] >= WIDE_RANGE
    few = len(values) <= MOST_VALUES
    if not numbers or (few and _crowded(np.log(values) if wide else np.array(values, float))):
        _write_names(axes, [short(shown(v), LONGEST_NAME) for v in values])
        return {value: place for place, value in enumerate(values)}
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())  # they overprint each other
    if few:
        axes.set_xticks(values, [shown(v) for v in values])
        axes.minorticks_off()
    return {value: value for value in values}


def _crowded(places: np.ndarray) -> bool:
    """Return whether two neighbours are too close for their labels."""
    return len(places) > 1 and np.diff(places).min() < CROWDED * np.ptp(places)


def _write_names(axes: Axes, names: Sequence[str]) -> None:
    """Write names as ticks: slanted where they do not fit side by side, upright where they are many."""
    look: dict[str, Any] = {}
    if len(names) > MANY_NAMES:
        look = {"rotation": 90, "fontsize": 7}
    elif sum(map(letters, names)) + len(names) > A_ROW:
        look = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, **look)
