"""Speed of the training loops."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from src.exploration.writing import Figure

LOOPS = {"tutorial": "#999999", "eager": "#0072B2", "compiled": "#56B4E9", "graph": "#009E73", "ours": "#D55E00"}
NAMES = {
    "tutorial": "tutorial's loop",
    "eager": "best loop by hand",
    "compiled": "the same, compiled",
    "graph": "the same, as a CUDA graph",
    "ours": "src.train",
}


def speed_figure(rows: Sequence[Mapping[str, Any]], conditions: str) -> Figure:
    """Images a second of each loop, as multiples of the tutorial's: of medians, where the table has medians of ratios.

    Args:
        rows: of the steps' table: a mapping an experiment.
        conditions: where that was, and with which overrides.
    """
    figure = Figure(figsize=(9, 1 + 0.8 * len(rows)), layout="constrained")
    axes = figure.subplots()
    loops = [loop for loop in LOOPS if f"{loop} images/s" in rows[0]]
    thick = 0.81 / len(loops)
    for i, row in enumerate(rows):
        for k, loop in enumerate(loops):
            times = row[f"{loop} images/s"] / row["tutorial images/s"]
            place = i + thick * (k - (len(loops) - 1) / 2)
            axes.barh(place, times, 0.93 * thick, color=LOOPS[loop], label=NAMES[loop] if i == 0 else None)
            axes.annotate(
                f"{row[f'{loop} images/s']:,.0f} images/s", (times, place), (4, 0), textcoords="offset points",
                va="center", fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["experiment"] for row in rows])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0, 1.25 * max(row[f"{loop} images/s"] / row["tutorial images/s"] for row in rows for loop in loops))
    axes.set(xlabel="median training speed, as a multiple of the tutorial's")
    axes.set_title(fill(conditions, 140), fontsize=8)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure
