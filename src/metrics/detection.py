"""How well a score tells positive images from negative ones, with an interval over groups of images (patients).

N images have ``scores [N]`` (higher: more suspicious), ``positive [N]`` (bool) and ``weights [..., N]``, by which a
bootstrap counts each image. All are numpy arrays.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 1_000
AT_ONCE = 2**20  # weights that a bootstrap holds

Statistic = Callable[[np.ndarray], np.ndarray]  # weights [..., N] to values [...], or [..., S] of several statistics


class Interval(NamedTuple):
    """A value with the 95 % interval of its bootstrap."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = (round(one, 3) + 0.0 for one in self)  # no -0.000
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"


class Bootstrap(NamedTuple):
    """Statistics of images, and of images of resampled groups."""

    value: np.ndarray  # [...]
    drawn: np.ndarray  # [draws, ...]

    def interval(self, level: float = 0.05) -> Interval:
        """Return a single statistic with its percentile interval, which misses at this level.

        Draws where the statistic is not a number, as they lack a class, are left out.
        """
        low, high = np.nanquantile(self.drawn, [level / 2, 1 - level / 2])
        return Interval(float(self.value), float(low), float(high))

    def of(self, statistic: Callable[[np.ndarray], np.ndarray]) -> "Bootstrap":
        """Return what is computed of the statistics, such as the difference of two: of value and draws alike."""
        return Bootstrap(statistic(self.value), statistic(self.drawn))


def auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Return the area under the ROC curve ``[...]``: the chance that a positive outranks a negative, ties half.

    It is not a number without positives or without negatives.

    >>> float(auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])))
    0.875
    """
    positives, negatives = _by_score(scores, positive, weights)
    below = negatives.cumsum(-1) - negatives / 2
    with np.errstate(invalid="ignore"):
        return (positives * below).sum(-1) / (positives.sum(-1) * negatives.sum(-1))


def auprc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Return the average precision ``[...]``, the area under the steps of precision over recall.

    A score that knows nothing has the share of positives.

    >>> float(auprc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])).round(4))
    0.8333
    """
    positives, negatives = (side[..., ::-1] for side in _by_score(scores, positive, weights))
    found = positives.cumsum(-1)
    with np.errstate(invalid="ignore"):
        precision = found / np.maximum(found + negatives.cumsum(-1), np.finfo(float).tiny)
        return (precision * positives).sum(-1) / positives.sum(-1)


def share_above(
    scores: np.ndarray, chosen: np.ndarray, threshold: float, weights: np.ndarray | float = 1.0
) -> np.ndarray:
    """Return which share ``[...]`` of the chosen images scores above a threshold: of positives, the sensitivity."""
    weights = np.broadcast_to(weights, np.broadcast_shapes(np.shape(weights), scores.shape))[..., chosen]
    with np.errstate(invalid="ignore"):
        return (weights * (scores[chosen] > threshold)).sum(-1) / weights.sum(-1)


def interval(statistic: Statistic, groups: Sequence[Hashable], draws: int = DRAWS, seed: int = 0) -> Interval:
    """Return a statistic of N images and its 95 % percentile interval over resampled groups, by :func:`bootstrap`."""
    return bootstrap(statistic, groups, draws, seed).interval()


def bootstrap(statistic: Statistic, groups: Sequence[Hashable], draws: int = DRAWS, seed: int = 0) -> Bootstrap:
    """Return a statistic of N images, and of images of resampled groups.

    Images of one group (a patient's) are drawn together, so an interval is that of another sample of patients.

    Args:
        statistic: of weights ``[..., N]``.
        groups: of each image.
        draws: of the bootstrap.
        seed: of these.
    """
    numbers: dict[Hashable, int] = {}
    of = np.fromiter((numbers.setdefault(group, len(numbers)) for group in groups), np.int64, len(groups))
    count, rng = len(numbers), np.random.default_rng(seed)
    step = max(1, AT_ONCE // max(len(of), 1))
    values = []
    for start in range(0, draws, step):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(step, draws - start))
        values.append(statistic(drawn[:, of].astype(float)))
    return Bootstrap(np.asarray(statistic(np.ones(len(of)))), np.concatenate(values))


def _by_score(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of positives and of negatives at each different score, ascending: ``[..., S]`` each."""
    weights = np.broadcast_to(weights, np.broadcast_shapes(np.shape(weights), scores.shape))
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) != 0) if len(scores) else np.zeros(0, int)
    side = positive[order]
    sides = (np.where(side, weights[..., order], 0.0), np.where(side, 0.0, weights[..., order]))
    return tuple(np.add.reduceat(one, starts, axis=-1) for one in sides)
