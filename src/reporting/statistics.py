"""Means over seeds, their confidence intervals, and which configuration is best."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pandas as pd
from scipy.stats import t, ttest_ind, ttest_rel

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


def p_value(ours: pd.Series, theirs: pd.Series) -> float:
    """Test whether two configurations differ in their means: the two-sided p-value, NaN where it cannot be computed.

    Seeds that both have are paired, which removes what a seed does to both; without two such seeds it is Welch's test.

    Args:
        ours: a number for each seed.
        theirs: the same of the other configuration.
    """
    common = ours.index.intersection(theirs.index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy's, of numbers that are all equal
        if len(common) >= 2:
            return float(ttest_rel(ours[common], theirs[common]).pvalue)
        if min(len(ours), len(theirs)) >= 2:
            return float(ttest_ind(ours, theirs, equal_var=False).pvalue)
    return math.nan


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Adjust p-values so that a false rejection among all of them is no more likely than the level (Holm 1979).

    NaN stays, and does not count as a test.
    """
    known = sorted((p, key) for key, p in p_values.items() if not math.isnan(p))
    adjusted, largest = dict(p_values), 0.0
    for rank, (p, key) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[key] = largest
    return adjusted


def by_seed(points: pd.DataFrame, row: Mapping[str, Any], column: str) -> pd.Series:
    """Return a configuration's numbers, one for each seed."""
    return points[points.point.isin(row["points"])].groupby("seed")[column].mean().dropna()


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

    A rival is a configuration whose difference from the best one has an adjusted p-value (:func:`p_value`,
    :func:`holm`) of 5 % or more. All pairs of configurations count as tests, not only those with the best one: which
    one is the best is known from the same numbers, so any pair might have become the one that is tested.

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
    pairs = holm({(i, j): p_value(values[i], values[j]) for i, j in combinations(range(len(rows)), 2)})
    known = [place for place in range(1, len(rows)) if len(values[place]) > 1]
    rivals = [place for place in known if not pairs[0, place] < ALPHA]
    tests = sum(not math.isnan(p) for p in pairs.values())
    corrected = f" (t tests, Holm-corrected for all {tests} pairs)" if tests > 1 else ""
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
        if not front or (quality[i] > quality[front[-1]] and better(i, front[-1])):
            front.append(i)
    return front
