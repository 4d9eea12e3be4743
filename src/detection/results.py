"""How well scores tell images that are not normal, and whether any is better than no model at all."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from src.detection.detector import PASSED, VERDICT, Judged, threshold
from src.detection.truth import Truth
from src.metrics.detection import DRAWS, Bootstrap, Interval, auprc, auroc, bootstrap, share_above

FEWEST = 2  # images of a side or a kind, below which there is no figure
FEWEST_UNITS = 5  # patients of a side, below which a bootstrap knows nothing of others
LEVEL = 0.05  # of intervals
MANY, FEW_DRAWS = 5_000, 400  # from so many images on there are fewer resamplings
NOT_A_DIAGNOSIS = "Not for diagnosis: a score says how unlike the normal training images a picture is, not why."


class Row(NamedTuple):
    """A score held against the labels."""

    name: str
    needs_model: bool
    auroc: Interval
    auprc: Interval
    sensitivity: Interval  # share of abnormal images above the threshold that normal validation images set
    specificity: Interval  # share of normal images below it
    shift: float  # AUROC of normal images against normal validation images: 0.5 where these are alike


class Comparison(NamedTuple):
    """The verdict beside the best baseline of each resampling, which favours the baselines."""

    baseline: str  # the best one
    difference: Interval  # AUROC of the verdict less that of the best baseline, over the same patients
    better: tuple[str, ...]  # scores of the model that beat all baselines, at a level for all scores together


class Result(NamedTuple):
    """What labels say of a detector."""

    rows: list[Row]  # the verdict, scores by AUROC, baselines by AUROC
    kinds: dict[str, tuple[int, Interval]]  # of abnormal images: how many, and the verdict's AUROC against all normal
    comparison: Comparison
    normal: tuple[int, int]  # images and patients
    abnormal: tuple[int, int]

    @property
    def of_model(self) -> list[Row]:
        """The verdict, then the scores of the model."""
        return [row for row in self.rows if row.needs_model]

    @property
    def baselines(self) -> list[Row]:
        """What needs no model."""
        return [row for row in self.rows if not row.needs_model]


def result(
    judged: tuple[Judged, Mapping[str, np.ndarray]],
    validation: tuple[Judged, Mapping[str, np.ndarray]],
    truth: Truth,
    units: Sequence[Hashable],
) -> Result | None:
    """Hold scores against labels; None where these do not name normal and abnormal images.

    Args:
        judged: images, and their baselines.
        validation: the same of normal validation images.
        truth: labels of the images.
        units: what the images ``[N]`` are samples of (patients), which the intervals draw together.
    """
    known, abnormal = truth.known, truth.abnormal[truth.known]
    if min(abnormal.sum(), (~abnormal).sum()) < FEWEST:
        return None
    units = [unit for unit, inside in zip(units, known, strict=True) if inside]
    scores, held = columns(*judged), columns(*validation)
    scores = {name: values[known] for name, values in scores.items()}
    sides = [(int(side.sum()), len({units[i] for i in np.flatnonzero(side)})) for side in (~abnormal, abnormal)]
    kinds = _kinds(truth.kind[known], abnormal)
    limits = {name: threshold(values) for name, values in held.items()}
    draws = DRAWS if len(units) < MANY else FEW_DRAWS
    drawn = bootstrap(lambda weights: _figures(scores, limits, abnormal, kinds, weights), units, draws)
    enough = min(count for _, count in sides) >= FEWEST_UNITS

    def interval(number: int, sure: bool = enough) -> Interval:
        found = drawn.of(lambda values: values[..., number]).interval(LEVEL)
        return found if sure else Interval(found.value, 0.0, 1.0)

    rows = [
        Row(
            name,
            name not in judged[1],
            *(interval(4 * number + figure) for figure in range(4)),
            _shift(values[~abnormal], held[name]),
        )
        for number, (name, values) in enumerate(scores.items())
    ]
    units_of = {name: {units[i] for i in np.flatnonzero(here & abnormal)} for name, here in kinds.items()}
    by_kind = {
        name: (
            int((here & abnormal).sum()),
            interval(4 * len(scores) + number, enough and len(units_of[name]) >= FEWEST_UNITS),
        )
        for number, (name, here) in enumerate(kinds.items())
    }
    comparison = _comparison(rows, drawn.of(lambda values: values[..., : 4 * len(scores) : 4]), enough)
    of_model, bare = ([row for row in rows if row.needs_model is side] for side in (True, False))
    rows = [of_model[0], *_by_auroc(of_model[1:]), *_by_auroc(bare)]
    return Result(rows, by_kind, comparison, *sides)


def _figures(
    scores: Mapping[str, np.ndarray],
    limits: Mapping[str, float],
    abnormal: np.ndarray,
    kinds: Mapping[str, np.ndarray],
    weights: np.ndarray,
) -> np.ndarray:
    """Return the four figures of each score in the order of :class:`Row`, then the verdict's AUROC of each kind."""
    found = [
        figure
        for name, values in scores.items()
        for figure in (
            auroc(values, abnormal, weights),
            auprc(values, abnormal, weights),
            share_above(values, abnormal, limits[name], weights),
            1 - share_above(values, ~abnormal, limits[name], weights),
        )
    ]
    found += [auroc(scores[VERDICT][here], abnormal[here], weights[..., here]) for here in kinds.values()]
    return np.stack(found, -1)


def columns(judged: Judged, baselines: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the verdict, all scores and all baselines by name, ``[N]`` each."""
    return {VERDICT: judged.verdict, **judged.scores, **baselines}


def _shift(normal: np.ndarray, held: np.ndarray) -> float:
    both = np.concatenate([normal, held])
    return float(auroc(both, np.arange(len(both)) < len(normal)))


def _comparison(rows: Sequence[Row], areas: Bootstrap, enough: bool) -> Comparison:
    """Compare scores of the model with the best baseline of each resampling.

    Args:
        rows: of all scores, the verdict first.
        areas: AUROCs ``[..., S]`` of the rows.
        enough: whether there are enough patients for an interval.
    """
    with_model, bare = ([n for n, row in enumerate(rows) if row.needs_model is side] for side in (True, False))

    def ahead(number: int, level: float) -> Interval:
        found = areas.of(lambda values: values[..., number] - values[..., bare].max(-1)).interval(level)
        return found if enough else Interval(found.value, -1.0, 1.0)

    together = LEVEL / len(with_model)  # Bonferroni: one of many scores is ahead by chance
    better = tuple(rows[number].name for number in with_model if ahead(number, together).low > 0)
    best = max(bare, key=lambda number: rows[number].auroc.value)
    return Comparison(rows[best].name, ahead(0, LEVEL), better)


def _by_auroc(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda one: -one.auroc.value)


def _kinds(kind: np.ndarray, abnormal: np.ndarray) -> dict[str, np.ndarray]:
    """Return for each of several kinds of abnormal images which images are of it or normal ``[N]``."""
    names, counts = np.unique(kind[abnormal], return_counts=True)
    if len(names) < 2:
        return {}
    return {str(name): ~abnormal | (kind == name) for name, n in zip(names, counts, strict=True) if n >= FEWEST}


def words(found: Result, over: str) -> str:
    """Return the result for a terminal: the table, and what it means in sentences.

    Args:
        found: the result.
        over: what intervals are over: patients or images.
    """
    width = max(len(row.name) for row in found.rows) + 2
    head = f"  {'':<{width}}{'AUROC [95 %]':<22}{'AUPRC [95 %]':<22}sensitivity  specificity  shift"
    (normal, of_normal), (other, of_other) = found.normal, found.abnormal
    counts = "" if over == "images" else f" of {of_normal:,} and {of_other:,} {over}"
    lines = [f"{normal:,} normal and {other:,} other images{counts}; intervals over {over}", head]
    if min(of_normal, of_other) < FEWEST_UNITS:
        lines[0] += ", too few on one side: nothing is sure, [0, 1]"
    for title, rows in (("the model", found.of_model), ("without a model", found.baselines)):
        lines.append(f" {title}")
        lines += [
            f"  {row.name:<{width}}{row.auroc!s:<22}{row.auprc!s:<22}{row.sensitivity.value:>11.2f}  "
            f"{row.specificity.value:>11.2f}  {row.shift:>5.2f}"
            for row in rows
        ]
    if found.kinds:
        lines.append(" the verdict by kind")
        lines += [f"  {f'{name} ({count:,})':<{width}}{area}" for name, (count, area) in found.kinds.items()]
    return "\n".join([*lines, "", *sentences(found)])


def sentences(found: Result) -> list[str]:
    """Say whether the model is worth anything, how the images have shifted, and what it is not for."""
    comparison, verdict = found.comparison, found.rows[0]
    best = next(row for row in found.rows if row.name == comparison.baseline)
    difference = comparison.difference
    beside = f"{verdict.auroc.value:.3f} beside {best.auroc.value:.3f}, difference {difference}"
    if difference.low > 0:
        lines = [f"The verdict beats every baseline; the best is {best.name!r} ({beside})."]
    elif difference.high < 0:
        lines = [f"The verdict is worse than {best.name!r}, which needs no model ({beside})."]
    else:
        lines = [f"The verdict is not surely better than {best.name!r}, which needs no model ({beside})."]
    singles = [name for name in comparison.better if name != VERDICT]
    if not comparison.better and difference.low <= 0:
        lines.append("No score of this model surely beats all baselines.")
    elif singles:
        lines.append(
            f"Single scores that beat them all here: {', '.join(singles)}; to choose one takes labels of other images."
        )
    lines.append(
        f"Thresholds pass {PASSED:.0%} of normal validation images; shift is the AUROC of normal images against these "
        f"({verdict.shift:.2f} for the verdict, 0.5 is none)."
    )
    return [*lines, NOT_A_DIAGNOSIS]


def as_json(found: Result) -> dict[str, Any]:
    """Return the result as plain values."""
    return {
        **{
            side: {"images": images, "units": units}
            for side, (images, units) in (("normal", found.normal), ("abnormal", found.abnormal))
        },
        "scores": [
            {name: value._asdict() if isinstance(value, Interval) else value for name, value in row._asdict().items()}
            for row in found.rows
        ],
        "kinds": {name: {"images": count, "auroc": area._asdict()} for name, (count, area) in found.kinds.items()},
        "best_baseline": found.comparison.baseline,
        "ahead_of_the_best_baseline": found.comparison.difference._asdict(),
        "better_than_every_baseline": [*found.comparison.better],
    }
