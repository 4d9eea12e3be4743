"""Means over seeds, how sure they are, and what is best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from scipy.stats import t

from src.reporting.plots import FEW_SEEDS


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half width of its confidence interval (Student's t); the width is NaN for one value."""
    values = pd.Series(values, dtype=float).dropna()
    if len(values) < 2:
        return float(values.mean()), math.nan
    return float(values.mean()), float(t.ppf(0.5 + level / 2, len(values) - 1) * values.sem())


def configurations(points: pd.DataFrame, swept: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Points that differ in their seed alone, as one row: mean of each column, ``<column>_ci``, number of ``seeds``.

    Args:
        points: finished points of one family.
        swept: keys that make a configuration.
        columns: what to average.
    """
    rows = []
    for key, part in points.groupby([points[k].map(repr) for k in swept] or (lambda _: 0), sort=False):
        numbers = part[[*columns]].apply(pd.to_numeric, errors="coerce")
        by_seed = numbers.groupby(part.seed.map(repr)).mean()  # the same seed twice says nothing new
        row: dict[str, Any] = {"key": key, "points": list(part.point), "seeds": len(by_seed)}
        row.update({k: part[k].iloc[0] for k in swept})
        for column in columns:
            row[column], row[f"{column}_ci"] = interval(by_seed[column])
        rows.append(row)
    return pd.DataFrame(rows)


@dataclass
class Verdict:
    """The best configuration and how sure that is.

    Attributes:
        best: its row of :func:`configurations`.
        text: what may be said of it, in words.
        rivals: rows that cannot be told from it at 95 %.
    """

    best: pd.Series
    text: str
    rivals: list[pd.Series] = field(default_factory=list)


def verdict(points: pd.DataFrame, swept: Sequence[str], maximize: bool) -> Verdict | None:
    """Choose the configuration with the best mean ``value`` (on validation) and compare it with each other one.

    Differences are taken seed by seed where both have the same seeds, which removes what a seed does to both; each
    has its own 95 % interval. None where no point has a value.
    """
    table = configurations(points.dropna(subset=["value"]), swept, ["value"])
    if table.empty:
        return None
    table = table.sort_values("value", ascending=not maximize, kind="stable", ignore_index=True)
    best, others = table.iloc[0], [table.iloc[i] for i in range(1, len(table))]
    if not others:
        return Verdict(best, "it is the only configuration" + _few(int(best.seeds)))
    if best.seeds < 2:
        gap = abs(best.value - others[0].value)
        text = f"{gap:.2f} better than the next one, but with one seed nobody knows what chance does: add seed=0,1,2"
        return Verdict(best, text, others)
    known = [other for other in others if other.seeds > 1]
    rivals = [other for other in known if not _apart(points, best, other)]
    # Of many the best one has been lucky too, which no interval of a pair knows.
    each = f"s (each by itself, without correction for choosing among {len(table)})" if len(others) > 1 else ""
    parts = [f"at 95 % better than {len(known) - len(rivals)} of {len(others)} other{each}"]
    if rivals:
        parts.append(f"not to be told from {len(rivals)}")
    if len(known) < len(others):
        parts.append(f"{len(others) - len(known)} with one seed cannot be judged")
    return Verdict(best, ", ".join(parts) + _few(min(int(row.seeds) for row in (best, *known))), rivals)


def _few(seeds: int) -> str:
    if seeds >= FEW_SEEDS:
        return ""
    return f"; {seeds} seed{'s are' if seeds > 1 else ' is'} too few to be sure: add seed=0,1,2"


def _apart(points: pd.DataFrame, best: pd.Series, other: pd.Series) -> bool:
    """Whether the difference of two configurations has an interval without 0."""
    ours, theirs = (
        part.groupby("seed").value.mean() for part in (points[points.point.isin(row.points)] for row in (best, other))
    )
    common = ours.index.intersection(theirs.index)
    if len(common) >= 2:
        mean, half = interval(ours[common] - theirs[common])
    else:  # Welch's interval, with the smaller number of degrees of freedom
        mean = ours.mean() - theirs.mean()
        half = t.ppf(0.975, min(len(ours), len(theirs)) - 1) * math.hypot(ours.sem(), theirs.sem())
    return abs(mean) > half > 0


def pareto(cost: Sequence[float], quality: Sequence[float]) -> list[int]:
    """Positions of the points that no other one beats in both, by rising cost; quality is better where larger.

    Points without a number take no part.
    """
    known = [i for i in range(len(cost)) if math.isfinite(cost[i]) and math.isfinite(quality[i])]
    front, best = [], -math.inf
    for i in sorted(known, key=lambda i: (cost[i], -quality[i])):
        if quality[i] > best:
            front.append(i)
            best = quality[i]
    return front
