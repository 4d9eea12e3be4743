"""How well scores tell images that are not normal, and whether any is better than no model at all."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from src.detection.detector import PASSED, VERDICT, Judged
from src.detection.truth import Truth
from src.metrics.detection import Interval, auprc, auroc, interval, share_above

FEWEST = 2  # images of a kind, below which it has no row
NOT_A_DIAGNOSIS = "Not for diagnosis: a score says how unlike the normal training images a picture is, not why."


class Row(NamedTuple):
    """A score held against the labels."""

    name: str
    needs_model: bool
    auroc: Interval
    auprc: float
    sensitivity: float  # share of abnormal images above the threshold that normal validation images set
    specificity: float  # share of normal images below it
    shift: float  # area of normal images against normal validation images: 0.5 where these are alike


class Comparison(NamedTuple):
    """The verdict beside the best baseline."""

    baseline: str
    difference: Interval  # of areas, verdict less baseline, over the same patients
    better: tuple[str, ...]  # scores of the model whose area is surely larger than that of the baseline


class Result(NamedTuple):
    """What labels say of a detector."""

    rows: list[Row]  # the verdict, scores by area, baselines by area
    kinds: dict[str, tuple[int, Interval]]  # of abnormal images: how many, and the verdict's area against all normal
    comparison: Comparison
    normal: int  # images
    abnormal: int


def thresholds(judged: Judged, baselines: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return for each score what 95 % of normal validation images do not pass."""
    columns = {VERDICT: judged.verdict, **judged.scores, **baselines}
    return {name: float(np.quantile(values, PASSED)) for name, values in columns.items()}


def result(
    judged: tuple[Judged, Mapping[str, np.ndarray]],
    validation: tuple[Judged, Mapping[str, np.ndarray]],
    truth: Truth,
    groups: np.ndarray,
) -> Result | None:
    """Hold scores against labels; None where these do not name normal and abnormal images.

    Args:
        judged: images, and their baselines.
        validation: the same of normal validation images.
        truth: labels of the images.
        groups: numbers ``[N]`` of their groups (patients), which the intervals draw together.
    """
    known, abnormal = truth.known, truth.abnormal[truth.known]
    if min(abnormal.sum(), (~abnormal).sum()) < FEWEST:
        return None
    limits, groups = thresholds(*validation), groups[known].tolist()
    parts = [
        ({VERDICT: one.verdict[here], **{name: values[here] for name, values in one.scores.items()}}, bare)
        for (one, bare), here in ((judged, known), (validation, slice(None)))
    ]
    of_model, held = (part[0] for part in parts)
    bare = {name: values[known] for name, values in judged[1].items()}

    def row(name: str, values: np.ndarray, normal: np.ndarray, needs_model: bool) -> Row:
        between = np.concatenate([values[~abnormal], normal])
        return Row(
            name,
            needs_model,
            interval(lambda weights: auroc(values, abnormal, weights), groups),
            float(auprc(values, abnormal)),
            float(share_above(values, abnormal, limits[name])),
            1 - float(share_above(values, ~abnormal, limits[name])),
            float(auroc(between, np.arange(len(between)) < (~abnormal).sum())),
        )

    rows = [row(name, values, held[name], True) for name, values in of_model.items()]
    without = [row(name, values, validation[1][name], False) for name, values in bare.items()]
    rows = [rows[0], *_by_area(rows[1:]), *_by_area(without)]
    best = max(without, key=lambda one: one.auroc.value).name

    def against(name: str) -> Interval:
        return interval(
            lambda weights: auroc(of_model[name], abnormal, weights) - auroc(bare[best], abnormal, weights), groups
        )

    better = tuple(one.name for one in rows if one.needs_model and against(one.name).low > 0)
    kinds = _kinds(of_model[VERDICT], truth, groups)
    normal = int((~abnormal).sum())
    return Result(rows, kinds, Comparison(best, against(VERDICT), better), normal, len(abnormal) - normal)


def _by_area(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda one: -one.auroc.value)


def _kinds(verdict: np.ndarray, truth: Truth, groups: list[Any]) -> dict[str, tuple[int, Interval]]:
    """Return the area of the verdict for each of several kinds of abnormal images, against all normal ones."""
    abnormal, kind = truth.abnormal[truth.known], truth.kind[truth.known]
    names, counts = np.unique(kind[abnormal], return_counts=True)
    if len(names) < 2:
        return {}
    found = {}
    for name, count in zip(names.tolist(), counts.tolist(), strict=True):
        here = ~abnormal | (kind == name)
        of = [group for group, inside in zip(groups, here, strict=True) if inside]
        if count >= FEWEST:
            values, side = verdict[here], abnormal[here]
            found[name] = (count, interval(lambda weights, v=values, s=side: auroc(v, s, weights), of))
    return found


def words(found: Result, over: str) -> str:
    """Return the result for a terminal: the table, and what it means in sentences.

    Args:
        found: the result.
        over: what intervals are over: patients or images.
    """
    width = max(len(row.name) for row in found.rows) + 2
    head = f"  {'':<{width}}{'AUROC [95 %]':<22}AUPRC  sensitivity  specificity  shift"
    lines = [f"{found.normal:,} normal and {found.abnormal:,} other images, intervals over {over}", head]
    for needs_model, title in ((True, "the model"), (False, "without a model")):
        lines.append(f" {title}")
        lines += [
            f"  {row.name:<{width}}{row.auroc!s:<22}{row.auprc:.3f}  {row.sensitivity:>11.2f}  {row.specificity:>11.2f}"
            f"  {row.shift:>5.2f}"
            for row in found.rows
            if row.needs_model is needs_model
        ]
    if found.kinds:
        lines.append(" the verdict by kind")
        lines += [f"  {f'{name} ({count:,})':<{width}}{area}" for name, (count, area) in found.kinds.items()]
    return "\n".join([*lines, "", *sentences(found)])


def sentences(found: Result) -> list[str]:
    """Say whether the model is worth anything, how the images have shifted, and what it is not for."""
    comparison, verdict = found.comparison, found.rows[0]
    best = next(row for row in found.rows if row.name == comparison.baseline and not row.needs_model)
    difference = comparison.difference
    beside = f"{verdict.auroc.value:.3f} beside {best.auroc.value:.3f}, difference {difference}"
    if difference.low > 0:
        lines = [f"The verdict beats every baseline; the best is {best.name!r} ({beside})."]
    elif difference.high < 0:
        lines = [f"The verdict is worse than {best.name!r}, which needs no model ({beside})."]
    else:
        lines = [f"The verdict is no better than {best.name!r}, which needs no model ({beside})."]
    singles = [name for name in comparison.better if name != VERDICT]
    if not comparison.better:
        lines.append(f"No score of this model beats {best.name!r}.")
    elif singles and difference.low <= 0:
        lines.append(
            f"Single scores that beat it here: {', '.join(singles)}; to choose among them takes labels of other images."
        )
    lines.append(
        f"Thresholds pass {PASSED:.0%} of normal validation images; shift is the area of normal images against these "
        f"({verdict.shift:.2f} for the verdict, 0.5 is none)."
    )
    return [*lines, NOT_A_DIAGNOSIS]


def as_json(found: Result) -> dict[str, Any]:
    """Return the result as plain values."""
    return {
        "normal": found.normal,
        "abnormal": found.abnormal,
        "scores": [row._asdict() | {"auroc": row.auroc._asdict()} for row in found.rows],
        "kinds": {name: {"images": count, "auroc": area._asdict()} for name, (count, area) in found.kinds.items()},
        "best_baseline": found.comparison.baseline,
        "difference": found.comparison.difference._asdict(),
        "better_than_every_baseline": [*found.comparison.better],
    }
