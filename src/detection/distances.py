"""How far numbers of an image are from those of normal images, by what was fitted to normal ones alone."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from src.system.errors import UserError

NEIGHBOURS = 5
FOLDS = 5
SAME = 1e-9  # of its mean, up to which the spread of a number is rounding


class Mahalanobis:
    """The distance from the mean in standard deviations, under a covariance that is shrunk to a sphere.

    Ledoit & Wolf 2004, by scikit-learn, on standardised numbers; of a single number it is ``|z|``. A number that does
    not vary among normal images has no scale, and is left out.

    Args:
        normal: ``[N, F]``.
    """

    def __init__(self, normal: np.ndarray) -> None:
        self._centre, self._spread = normal.mean(0), normal.std(0)
        self._varying = self._spread > SAME * np.abs(self._centre)
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
        components: K, at most.
    """

    def __init__(self, normal: np.ndarray, components: int) -> None:
        self._components = PCA(min(components, *normal.shape), random_state=0).fit(normal)

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Return the coordinates ``[M, K]`` in that plane."""
        return self._components.transform(values)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return ((values - self._components.inverse_transform(self.codes(values))) ** 2).mean(1)


class CrossFitted:
    """The Mahalanobis distance by fits that leave a fifth of the normal images out, each in turn.

    A distance from a Gaussian that has seen the image is too small. So normal images get that of the fit without them
    (``held``), others the mean of all fits, which they compare with. Images of one group (a patient's) share a fold.

    Args:
        normal: ``[N, F]``.
        groups: of each image, ``[N]``; at least five, none of which has more than half of the images.

    Raises:
        UserError: there are too few groups, or one is too large.
    """

    def __init__(self, normal: np.ndarray, groups: Sequence[Hashable]) -> None:
        sizes = Counter(groups)
        if len(sizes) < FOLDS or 2 * max(sizes.values()) > len(normal):
            raise UserError(
                f"the {len(normal)} normal validation images are of {len(sizes)} patients, one with "
                f"{max(sizes.values())}: {FOLDS} are needed, and none with more than half of the images. Train with "
                "a larger data.val_fraction, or another data.group_pattern"
            )
        filled, fold_of = [0] * FOLDS, {}
        for group, size in sizes.most_common():  # the largest first, into the emptiest fold
            fold_of[group] = int(np.argmin(filled))
            filled[fold_of[group]] += size
        fold = np.array([fold_of[group] for group in groups])
        self._fits = [Mahalanobis(normal[fold != k]) for k in range(FOLDS)]
        self.held = np.choose(fold, [fit(normal) for fit in self._fits])

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return np.mean([fit(values) for fit in self._fits], axis=0)


def flat(images: torch.Tensor) -> np.ndarray:
    """Return images as rows ``[N, F]`` of float64."""
    return images.flatten(1).double().numpy()
