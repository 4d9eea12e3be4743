"""What tells the classes apart without looking at the picture: sizes of files and pictures, brightness, borders."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.auditing.originals import Original
from src.data.base import ImageDataModule
from src.data.decoding import in_threads
from src.metrics.detection import Interval, auroc, interval
from src.metrics.simple_features import NUMBERS, power_spectrum

BLOCK = 64  # images that a thread measures at once
DRAWS, MANY, FEW_DRAWS = 1_000, 10_000, 200  # of the bootstrap; from so many images on there are fewer
STRONG, NOTABLE = 0.7, 0.6  # area from which on a feature gives the class away, and from which on it is worth a word
FEWEST = 10  # images of each side, below which nothing is said
RARE = 0.01  # share of a kind of files below which it is no feature


class Shortcut(NamedTuple):
    """How well one number tells images of a class from the others."""

    feature: str
    positive: str  # the class
    negative: str  # the other one, or "the rest"
    larger: bool  # whether the feature is larger in the positive class
    areas: dict[str, Interval]  # part of the data: the area under the ROC curve in that direction

    @property
    def area(self) -> Interval:
        """That of the images to learn from, or of the test images where those have one class."""
        return next(iter(self.areas.values()))

    @property
    def word(self) -> str:
        """``strong`` or ``notable``; empty for a feature that says little, or might say nothing."""
        found = self.area
        sure = found.low > 0.5
        return "strong" if sure and found.value >= STRONG else "notable" if sure and found.value >= NOTABLE else ""

    def __str__(self) -> str:
        direction = "larger" if self.larger else "smaller"
        return f"{self.feature} tells {self.positive} from {self.negative} with {_short(self.area)} ({direction})"


def _short(found: Interval) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def features_of(images: Tensor, originals: Sequence[Original | None] | None) -> dict[str, np.ndarray]:
    """Return numbers ``[N]`` by name, nan where an image has none; a constant one is left out.

    Args:
        images: uint8 ``[N, C, H, W]``, of the training's size.
        originals: the files as they were saved; None where the images are no files.
    """
    found = _of_files(originals) if originals is not None else {}
    side = images.shape[-1]
    measured: list[dict[str, np.ndarray] | None] = [None] * -(-len(images) // BLOCK)

    def measure(number: int) -> None:
        some = images[number * BLOCK : (number + 1) * BLOCK]
        spectrum = power_spectrum(some) if side >= 4 else np.empty((len(some), 0))
        bands = {f"power in band {i} of {spectrum.shape[1]}": band for i, band in enumerate(spectrum.T, 1)}
        measured[number] = {_name(name, side): of(some) for name, of in NUMBERS.items()} | bands

    in_threads(measure, range(len(measured)), "measuring images")
    for name in measured[0]:
        found[name] = np.concatenate([part[name] for part in measured])
    return {name: values for name, values in found.items() if np.nanmin(values) < np.nanmax(values)}


def _name(name: str, side: int) -> str:
    return f"{name.partition('_')[0].upper()} bytes at {side} px" if name.endswith("_bytes") else name


def _of_files(originals: Sequence[Original | None]) -> dict[str, np.ndarray]:
    def column(of: str) -> np.ndarray:
        return np.array([np.nan if one is None else float(getattr(one, of)) for one in originals])

    if not any(originals):
        return {}
    names = {"bytes": "file bytes", "aspect": "aspect ratio", "border": "border share", "marks": "bright marks"}
    names |= {"levels": "grey levels in use", "colour": "stored in colour", "depth": "bit depth"}
    found = {name: column(name) for name in ("width", "height")}
    found |= {name: column(of) for of, name in names.items()}
    formats = np.array(["" if one is None else one.format for one in originals])
    kinds, counts = np.unique(formats[formats != ""], return_counts=True)
    for kind in kinds[(counts < counts.max()) & (counts >= RARE * counts.sum())]:
        found[f"being a {kind} file"] = np.where(formats == "", np.nan, formats == kind)
    return found


def shortcuts(features: Mapping[str, np.ndarray], datamodule: ImageDataModule) -> list[Shortcut]:
    """Return how well each feature tells a class, the strongest first.

    Of two classes the second is told from the first; of more, each from the rest, and a feature has that class which
    it tells best. Training and validation images are taken together, and decide the direction; test images follow.
    """
    pool, splits = datamodule.pool, datamodule.splits
    parts = {"training": np.concatenate([splits.train.numpy(), splits.val.numpy()]), "test": splits.test.numpy()}
    labels = pool.labels.numpy()
    present = [label for label in np.unique(labels) if label >= 0 and (labels == label).sum() >= FEWEST]
    if len(present) < 2:
        return []
    told = present[1:] if len(present) == 2 else present
    negative = pool.classes[present[0]] if len(present) == 2 else "the rest"
    found = []
    for name, values in features.items():
        usable = {
            part: index[(labels[index] >= 0) & np.isfinite(values[index])] for part, index in parts.items()
        }  # of known class, with that number
        areas = [
            (abs(area - 0.5), int(label), area > 0.5)
            for label in told
            if (part := _part_with_both(usable, labels, label)) is not None
            and (area := float(auroc(values[usable[part]], labels[usable[part]] == label))) is not None
        ]
        if not areas:
            continue
        _, label, larger = max(areas)
        score = values if larger else -values
        by_part = {
            part: _area(score[index], labels[index] == label, pool.units(torch.from_numpy(index)))
            for part, index in usable.items()
            if _has_both(labels[index] == label)
        }
        found.append(Shortcut(name, pool.classes[label], negative, larger, by_part))
    return sorted(_best_band(found), key=lambda shortcut: -shortcut.area.value)


def _has_both(positive: np.ndarray) -> bool:
    return min(positive.sum(), (~positive).sum()) >= FEWEST


def _part_with_both(parts: Mapping[str, np.ndarray], labels: np.ndarray, label: int) -> str | None:
    return next((part for part, index in parts.items() if _has_both(labels[index] == label)), None)


def _area(score: np.ndarray, positive: np.ndarray, units: Sequence[Hashable]) -> Interval:
    draws = DRAWS if len(score) <= MANY else FEW_DRAWS
    return interval(lambda weights: auroc(score, positive, weights), units, draws)


def _best_band(found: Sequence[Shortcut]) -> list[Shortcut]:
    """Keep the band of the power spectrum that tells most, and all other features."""
    bands = [shortcut for shortcut in found if shortcut.feature.startswith("power in band")]
    best = max(bands, key=lambda shortcut: shortcut.area.value, default=None)
    return [shortcut for shortcut in found if shortcut not in bands or shortcut is best]
