"""How far numbers of an image are from those of normal images, by what was fitted to normal ones alone."""

from typing import Protocol

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

NEIGHBOURS = 5
FOLDS = 5


class Distance(Protocol):
    """What is fitted to numbers ``[N, F]`` of normal images gives a distance ``[M]`` of others ``[M, F]``."""

    def __call__(self, values: np.ndarray) -> np.ndarray: ...


class Mahalanobis:
    """The distance from the mean in standard deviations, under a covariance that is shrunk to a sphere.

    Ledoit & Wolf 2004, by scikit-learn, on standardised numbers; of a single number it is ``|z|``. Numbers that do not
    vary among normal images are left out.

    Args:
        normal: ``[N, F]``.
    """

    def __init__(self, normal: np.ndarray) -> None:
        self._centre, self._spread = normal.mean(0), normal.std(0)
        self._varying = self._spread > 1e-9 * np.maximum(1.0, np.abs(self._centre))
        self._fitted = LedoitWolf().fit(self._standardised(normal)) if self._varying.any() else None

    def _standardised(self, values: np.ndarray) -> np.ndarray:
        return (values - self._centre)[:, self._varying] / self._spread[self._varying]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if self._fitted is None:
            return np.zeros(len(values))
        return np.sqrt(np.maximum(self._fitted.mahalanobis(self._standardised(values)), 0.0))


class Neighbours:
    """The mean distance to the five nearest normal images.

    Args:
        normal: ``[N, F]``.
    """

    def __init__(self, normal: np.ndarray) -> None:
        self._search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(normal)), algorithm="brute").fit(normal)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return self._search.kneighbors(values)[0].mean(1)


class Unexplained:
    """The squared distance to the plane of the first principal components of normal images, per number.

    Args:
        normal: ``[N, F]``.
        components: K.
    """

    def __init__(self, normal: np.ndarray, components: int) -> None:
        self._components = PCA(min(components, *normal.shape), random_state=0).fit(normal)

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Return the coordinates ``[M, K]`` in that plane."""
        return self._components.transform(values)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return ((values - self._components.inverse_transform(self.codes(values))) ** 2).mean(1)


def out_of_fold(normal: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the Mahalanobis distance ``[N]`` of normal images from the others, fitted without each one's own fold.

    A distance from a Gaussian that has seen the image is too small. Images of one group (a patient's) share a fold.

    Args:
        normal: ``[N, F]``.
        groups: numbers ``[N]``.
    """
    folds = np.unique(groups, return_inverse=True)[1] % FOLDS
    found = np.empty(len(normal))
    for fold in np.unique(folds):
        out = folds == fold
        found[out] = Mahalanobis(normal[~out] if not out.all() else normal)(normal[out])
    return found


def flat(images: torch.Tensor) -> np.ndarray:
    """Return images as rows ``[N, F]`` of float64."""
    return images.flatten(1).double().numpy()
