"""A model and normal images make a detector: scores of any image, a verdict, and how usual both are.

No label of an image that is judged reaches this module: fits are of normal training images, calibrations of normal
validation images.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.data.base import Split
from src.data.splits import class_numbers
from src.detection.baselines import Baselines
from src.detection.distances import Mahalanobis, Neighbours, out_of_fold
from src.detection.measures import Measures, measure
from src.models.predictor import Predictor
from src.system.errors import UserError
from src.system.seeds import stream

MOST = 2_000  # normal training images that are fitted to
FEWEST = 20  # normal validation images, below which nothing can be calibrated
PASSED = 0.95  # share of normal validation images that a threshold passes
VERDICT = "verdict"


class Judged(NamedTuple):
    """N images with a score each, higher is less normal."""

    scores: dict[str, np.ndarray]  # [N] by name
    verdict: np.ndarray  # [N]
    heat: np.ndarray  # [N, h, w], times what normal images have at that place


class Images(NamedTuple):
    """N images of the data set."""

    index: Tensor  # [N], in the pool
    x: Tensor  # [N, C, H, W], as the model sees them
    levels: Tensor  # uint8 [N, C, H, W]


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
        validation: normal validation images, judged as if they had not been seen.
        baselines: scores without a model, fitted to the same images.

    Raises:
        UserError: there are too few normal images.
    """

    def __init__(self, predictor: Predictor, normal: Sequence[int] | None, samples: int) -> None:
        self.predictor, self.samples = predictor, samples
        train, held = (_normal(predictor, part, normal) for part in ("train", "val"))
        if len(held) < FEWEST:
            raise UserError(
                f"{len(held)} normal validation images are too few to calibrate on, {FEWEST} are needed: train with a "
                "larger data.val_fraction, or on more images"
            )
        train = train[torch.arange(min(MOST, len(train))) * len(train) // min(MOST, len(train))]
        fitted = self.images("train", train)
        known = measure(predictor, fitted.x, fitted.levels, 0)
        self._usual_heat = np.maximum(known.heat.mean(0), 1e-3 * known.heat.mean())
        self._residual = Mahalanobis(known.residual)
        self._code = None if known.code is None else (Mahalanobis(known.code), Neighbours(known.code))
        self.held = self.images("val", held)
        scores, heat = self._scores(self.held.x, self.held.levels)
        table = _table(scores)
        self._joint = Mahalanobis(table)
        self.validation = Judged(scores, out_of_fold(table, self.groups(held)), heat)
        self.baselines = Baselines(fitted.levels)

    def images(self, part: Split, index: Tensor) -> Images:
        """Return images of a split by their places in the pool; random pixels are a function of seed and position."""
        module, levels = self.predictor.datamodule, self.predictor.datamodule.pool.images[index]
        seen = []
        for number, some in enumerate(levels.split(self.predictor.batch_size)):
            with stream(self.predictor.seed, "pixels", part, number):
                seen.append(module.scale(some))
        return Images(index, torch.cat(seen), levels)

    def groups(self, index: Tensor) -> np.ndarray:
        """Return the number ``[N]`` of each image's group (patient); without groups each image is its own."""
        pool = self.predictor.datamodule.pool
        if pool.groups is None:
            return np.arange(len(index))
        return np.unique([pool.groups[i] for i in index.tolist()], return_inverse=True)[1]

    def judge(self, x: Tensor, levels: Tensor) -> Judged:
        """Judge images ``[N, C, H, W]`` as the model sees them, and their uint8 levels."""
        scores, heat = self._scores(x, levels)
        return Judged(scores, self._joint(_table(scores)), heat)

    def _scores(self, x: Tensor, levels: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
        found = measure(self.predictor, x, levels, self.samples)
        heat = found.heat / self._usual_heat
        return self._compared(found) | {"hottest place": heat.max((1, 2))}, heat

    def _compared(self, found: Measures) -> dict[str, np.ndarray]:
        scores = found.numbers | {"residual distance": self._residual(found.residual)}
        if self._code is not None:
            distance, neighbours = self._code
            scores |= {"code distance": distance(found.code), "code: 5 neighbours": neighbours(found.code)}
        return scores


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
    if named is not None:
        numbers = class_numbers(pool, named, "normal")
        if not len(_normal(predictor, "train", numbers)):
            raise UserError(f"normal=[{','.join(named)}]: the run was trained on no image of that class")
        return numbers
    trained = sorted(set(pool.labels[module.splits.train].tolist()) - {-1})
    if len(trained) > 1 and module.classes is None:
        names = [pool.classes[label] for label in trained]
        raise UserError(f"the run was trained on {', '.join(names)}: say which are normal, such as normal=[{names[0]}]")
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


def p_values(values: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Return the share ``[N]`` of normal images that score at least as high, the image itself counted among them.

    >>> p_values(np.array([0.0, 9.0]), np.array([1.0, 2.0, 3.0]))
    array([1.  , 0.25])
    """
    ordered = np.sort(normal)
    above = len(ordered) - np.searchsorted(ordered, values, side="left")
    return (1 + above) / (1 + len(ordered))
