"""Scores without a model: what a detector has to beat before it is worth anything.

All are fitted to training images of normal classes; their direction is "unlike normal images", never chosen by labels.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from src.detection.distances import Mahalanobis, Neighbours, Unexplained, flat
from src.metrics import simple_features
from src.system.console import progress

THUMBNAIL = 32  # pixels a side, for components and neighbours
COMPONENTS = 32  # at most
BLOCK = 256  # images measured at once


class Baselines:
    """Distances of simple features from those of normal images.

    Args:
        normal: uint8 training images ``[N, C, H, W]`` of normal classes.
    """

    def __init__(self, normal: Tensor) -> None:
        features, pixels = _features(normal), _thumbnails(normal)
        self._distances = {name: Mahalanobis(values) for name, values in features.items()}
        self._plane = Unexplained(pixels, COMPONENTS)
        self._in_plane = Mahalanobis(self._plane.codes(pixels))
        self._neighbours = Neighbours(pixels)

    def __call__(self, images: Tensor) -> dict[str, np.ndarray]:
        """Return scores ``[M]`` by name of images, uint8 ``[M, C, H, W]``; higher is less normal."""
        features, pixels = _features(images), _thumbnails(images)
        found = {name: distance(features[name]) for name, distance in self._distances.items()}
        found["PCA: error"] = self._plane(pixels)
        found["PCA: distance"] = self._in_plane(self._plane.codes(pixels))
        found["pixels: 5 neighbours"] = self._neighbours(pixels)
        return found


def _features(images: Tensor) -> Mapping[str, np.ndarray]:
    """Return simple features ``[N, F]`` by the name of their baseline."""
    parts = [
        {_words(name): of(block)[:, None] for name, of in simple_features.NUMBERS.items()}
        | {
            "power spectrum": simple_features.power_spectrum(block),
            "contrast of cells": simple_features.local_contrast(block),
        }
        for block in progress(images.split(BLOCK), "baselines")
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _words(name: str) -> str:
    return f"{name.partition('_')[0].upper()} bytes" if name.endswith("_bytes") else name


def _thumbnails(images: Tensor) -> np.ndarray:
    side = min(THUMBNAIL, *images.shape[-2:])
    small = [interpolate(some.float(), (side, side), mode="area") / 255 for some in images.split(BLOCK)]
    return flat(torch.cat(small))
