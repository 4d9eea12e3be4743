"""Means over seeds, their confidence intervals, and which configuration is best."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import studentized_range, t

FEW_SEEDS = 3  # with fewer, Student's interval is wider than most differences
ALPHA = 0.05


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the mean and the half width of its confidence interval (Student's t); the width is NaN for one value."""
    values = pd.Series(values, dtype=float).dropna()
    if len(values) < 2:
        return float(values.mean()), math.nan
    return float(values.mean()), float(t.ppf(0.5 + level / 2, len(values) - 1) * values.sem())


def configurations(points: pd.DataFrame, swept: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Average points that differ in their seed alone: a row has the means, ``<column>_ci`` and the number of ``seeds``.

    Args:
        points: finished points of one family.
        swept: keys whose values make a configuration.
        columns: columns to average.
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


def p_value(ours: Sequence[float], theirs: Sequence[float], among: int) -> float:
    """Test whether two configurations differ in their means (Games & Howell 1976); NaN for a single seed.

    The p-value is corrected for all pairs among the configurations of a sweep: the best one is chosen from the same
    numbers, so any pair might have become the one that is tested. Variances may differ. Between two configurations
    alone this is Welch's t test. Seeds are not paired: three of them leave a paired test two degrees of freedom.

    Args:
        ours: a number for each seed.
        theirs: the same of the other configuration.
        among: number of configurations.
    """
    if min(len(ours), len(theirs)) < 2:
        return math.nan
    errors = [np.var(values, ddof=1) / len(values) for values in (ours, theirs)]
    if not (error := sum(errors)):
        return float(np.mean(ours) == np.mean(theirs))
    freedom = error**2 / sum(e**2 / (len(values) - 1) for e, values in zip(errors, (ours, theirs), strict=True))
    return float(studentized_range.sf(abs(np.mean(ours) - np.mean(theirs)) / math.sqrt(error / 2), among, freedom))


def by_seed(points: pd.DataFrame, row: Mapping[str, Any], column: str) -> pd.Series:
    """Return a configuration's numbers, one for each seed."""
    part = points[points.point.isin(row["points"])]
    return part.groupby(part.seed.map(repr))[column].mean().dropna()


@dataclass
class Verdict:
    """The best configuration, and which others may be as good.

    Attributes:
        best: its row of :func:`configurations`.
        text: how sure it is that this one is the best, in words.
        rivals: rows that cannot be told from it, see :func:`verdict`; with one seed all others, the next best first.
        few_seeds: whether it or one of the others has fewer than FEW_SEEDS.
    """

    best: pd.Series
    text: str
    rivals: list[pd.Series] = field(default_factory=list)
    few_seeds: bool = False


def verdict(points: pd.DataFrame, swept: Sequence[str], maximize: bool) -> Verdict | None:
    """Choose the configuration with the best mean ``value`` (on validation) and test it against each other one.

    A rival is a configuration whose difference from the best one has a p-value (:func:`p_value`) of 5 % or more.

    Returns:
        None where no point has a value.
    """
    table = configurations(points.dropna(subset=["value"]), swept, ["value"])
    if table.empty:
        return None
    table = table.sort_values("value", ascending=not maximize, kind="stable", ignore_index=True)
    rows = [row for _, row in table.iterrows()]
    best, others = rows[0], rows[1:]
    if not others:
        return Verdict(best, "it is the only configuration" + _too_few(best.seeds), few_seeds=best.seeds < FEW_SEEDS)
    if best.seeds < 2:
        gap = abs(best.value - others[0].value)
        return Verdict(best, f"{gap:.2f} better than the next one, but one seed gives no error estimate", others, True)
    values = [by_seed(points, row, "value") for row in rows]
    known = [place for place in range(1, len(rows)) if len(values[place]) > 1]
    rivals = [place for place in known if not p_value(values[0], values[place], len(known) + 1) < ALPHA]
    corrected = " (Games-Howell test, corrected for all pairs)" if len(known) > 1 else ""
    parts = [f"at 95 % better than {len(known) - len(rivals)} of {_count(len(others))}{corrected}"]
    if rivals:
        parts.append(f"cannot be told from {len(rivals)}")
    if len(known) < len(others):
        parts.append(f"{len(others) - len(known)} with one seed cannot be judged")
    fewest = min(len(values[place]) for place in (0, *known))
    return Verdict(best, ", ".join(parts) + _too_few(fewest), [rows[i] for i in rivals], fewest < FEW_SEEDS)


def _count(others: int) -> str:
    return f"{others} other{'s' if others > 1 else ''}"


def _too_few(seeds: int) -> str:
    return "" if seeds >= FEW_SEEDS else f"; {seeds} seed{'s are' if seeds > 1 else ' is'} too few to be sure"


def pareto(
    cost: Sequence[float], quality: Sequence[float], better: Callable[[int, int], bool] = lambda i, j: True
) -> list[int]:
    """Return the positions of the points on the Pareto front, by rising cost; quality is better where larger.

    A point is on it if it is better than every cheaper one on it. Points without a number take no part.

    Args:
        cost: of each point.
        quality: of each point.
        better: whether the point at the first position is better than that at the second by more than noise; only
            asked where its quality is larger.
    """
    known = [i for i in range(len(cost)) if math.isfinite(cost[i]) and math.isfinite(quality[i])]
    front: list[int] = []
    for i in sorted(known, key=lambda i: (cost[i], -quality[i])):
        if all(quality[i] > quality[j] and better(i, j) for j in front):
            front.append(i)
    return front
