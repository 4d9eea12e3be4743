"""A model and normal images make a detector: scores of any image, a verdict, and how usual both are.

No label of an image that is judged reaches this module: fits are of normal training images, calibrations of normal
validation images.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.data.base import Split
from src.data.splits import class_numbers
from src.detection.baselines import Baselines
from src.detection.distances import CrossFitted, Mahalanobis, Neighbours
from src.detection.measures import measure
from src.models.predictor import Predictor
from src.system.errors import TOO_LARGE, UserError

MOST_FITTED = 2_000  # normal training images that are fitted to
FEWEST_HELD = 20  # normal validation images, below which nothing can be calibrated
PASSED = 0.95  # share of normal images that a threshold passes
VERDICT = "verdict"


class Judged(NamedTuple):
    """N images with a score each, higher is less normal."""

    scores: dict[str, np.ndarray]  # [N] by name
    verdict: np.ndarray  # [N]
    heat: np.ndarray  # float32 [N, h, w], times what normal images have at that place


class Detector:
    """Scores of one model, fitted to normal images.

    The verdict is the Mahalanobis distance of all its scores together from those of normal validation images: density
    of states estimation (Morningstar et al. 2021, arXiv 2006.09273) with a Gaussian. It needs no choice among scores
    and no direction of any of them.

    Args:
        predictor: the model and its data.
        normal: numbers of the normal classes; None where the images have no classes.
        samples: of each posterior, for costs.

    Attributes:
        held: places of the normal validation images in the pool.
        validation: what is said of them by fits that have not seen them.
        baselines: scores without a model, fitted to the same images.

    Raises:
        UserError: there are too few normal images, or a score is not finite.
    """

    def __init__(self, predictor: Predictor, normal: Sequence[int] | None, samples: int) -> None:
        self.predictor, self.samples = predictor, samples
        pool = predictor.datamodule.pool
        train, self.held = (_normal(predictor, part, normal) for part in ("train", "val"))
        if len(self.held) < FEWEST_HELD:
            raise UserError(
                f"{len(self.held)} normal validation images are too few to calibrate on, {FEWEST_HELD} are needed: "
                "train with a larger data.val_fraction, or on more images"
            )
        count = min(MOST_FITTED, len(train))
        fitted = pool.images[train[torch.arange(count) * len(train) // count]]
        known = measure(predictor, fitted, 0)
        self._usual_heat = np.maximum(known.heat.mean(0), 1e-3 * known.heat.mean())
        self._residual = Mahalanobis(known.residual)
        self._code = None if known.code is None else (Mahalanobis(known.code), Neighbours(known.code))
        scores, heat = self._scores(pool.images[self.held])
        self._joint = CrossFitted(_table(scores), pool.units(self.held))
        self.validation = Judged(scores, self._joint.held, heat)
        self.baselines = Baselines(fitted)

    def judge(self, levels: Tensor) -> Judged:
        """Judge uint8 images ``[N, C, H, W]`` of the run's size.

        Raises:
            UserError: a score is not finite.
        """
        scores, heat = self._scores(levels)
        return Judged(scores, self._joint(_table(scores)), heat)

    def _scores(self, levels: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
        found = measure(self.predictor, levels, self.samples)
        heat = found.heat / self._usual_heat
        scores = found.numbers | {"hottest place": heat.max((1, 2)).astype(float)}
        values = [*scores.values(), found.residual, *([] if found.code is None else [found.code])]
        if not all(np.isfinite(some).all() for some in values):
            raise UserError(f"a score of an image is not finite: {TOO_LARGE}")
        scores["residual distance"] = self._residual(found.residual)
        if self._code is not None:
            distance, neighbours = self._code
            scores |= {"code distance": distance(found.code), "code: 5 neighbours": neighbours(found.code)}
        return scores, heat


def _normal(predictor: Predictor, part: Split, normal: Sequence[int] | None) -> Tensor:
    """Return the places of normal images of the training or validation split, whose labels are known to a training."""
    index = getattr(predictor.datamodule.splits, part)
    if normal is None:
        return index
    return index[torch.isin(predictor.datamodule.pool.labels[index], torch.tensor(normal))]


def normal_classes(predictor: Predictor, named: Sequence[str] | None) -> list[int] | None:
    """Return the numbers of the normal classes: those named, else those that the run was trained on.

    None where the images have no classes.

    Raises:
        UserError: there is no such class, or the run was trained on several and none is named.
    """
    module = predictor.datamodule
    pool = module.pool
    trained = sorted(set(pool.labels[module.splits.train].tolist()) - {-1})
    if named is not None:
        numbers = class_numbers(pool, named, "normal")
        if strange := [pool.classes[number] for number in numbers if number not in trained]:
            raise UserError(f"normal=[{','.join(named)}]: the run was trained on no image of {strange[0]}")
        return numbers
    if len(trained) > 1 and module.classes is None:
        names = ", ".join(pool.classes[label] for label in trained)
        raise UserError(f"the run was trained on {names}: say which of them are normal, normal=[...]")
    return trained or None


def _table(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.stack([*scores.values()], 1)


def standardised(values: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Return values in standard deviations from the mean of those of normal images."""
    return (values - normal.mean()) / max(normal.std(), 1e-12)


def joined(parts: Sequence[Judged], normal: Sequence[Judged]) -> Judged:
    """Return what several detectors say of the same N images: the means of their standardised scores.

    Heat maps are means too, at the size of the finest.

    Args:
        parts: of each detector.
        normal: what each says of normal validation images.
    """
    if len(parts) == 1:
        return parts[0]
    names = list(dict.fromkeys(name for part in parts for name in part.scores))
    pairs = [*zip(parts, normal, strict=True)]
    scores = {
        name: np.mean([standardised(p.scores[name], n.scores[name]) for p, n in pairs if name in p.scores], axis=0)
        for name in names
    }
    verdict = np.mean([standardised(p.verdict, n.verdict) for p, n in pairs], axis=0)
    side = max(part.heat.shape[-1] for part in parts)
    size = {"size": (side, side), "mode": "bilinear", "align_corners": False}
    heats = [torch.nn.functional.interpolate(torch.from_numpy(part.heat)[:, None], **size)[:, 0] for part in parts]
    return Judged(scores, verdict, torch.stack(heats).mean(0).numpy())


def threshold(normal: np.ndarray) -> float:
    """Return what at most 5 % of normal images pass: above it, :func:`p_values` are at most 0.05.

    >>> threshold(np.arange(1.0, 100.0))
    95.0
    """
    place = math.ceil(round((len(normal) + 1) * PASSED, 9))
    return float(np.sort(normal)[place - 1]) if place <= len(normal) else math.inf


def p_values(values: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Return the share ``[N]`` of normal images that score at least as high, the image itself counted among them.

    >>> p_values(np.array([0.0, 9.0]), np.array([1.0, 2.0, 3.0]))
    array([1.  , 0.25])
    """
    ordered = np.sort(normal)
    above = len(ordered) - np.searchsorted(ordered, values, side="left")
    return (1 + above) / (1 + len(ordered))
