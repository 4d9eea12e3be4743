"""Distances between two sets of images by their features ``[N, F]``, in float64.

torchmetrics computes the Fréchet distance, the kernel distance and the Inception Score. It gets features that are
already computed, since they are used many times (floors, bootstrap, several kinds of samples).
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

ENOUGH = 2_048  # with fewer images a Fréchet distance is biased and noisy
NEIGHBOURS = 5  # k of precision, recall, density and coverage, as Naeem et al. 2020
SUBSET = 1_000  # images in a subset of the kernel distance


class Given(nn.Module):
    """A feature network for torchmetrics that returns its input, which already is features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class Estimate(NamedTuple):
    """An estimate and its standard error."""

    value: float
    standard_error: float

    def as_dict(self) -> dict[str, float | list[float]]:
        """Return value, standard error and ``interval_95``, the 95 % confidence interval under normal errors."""
        margin = 1.96 * self.standard_error
        return {**self._asdict(), "interval_95": [self.value - margin, self.value + margin]}


def frechet(real: Tensor, other: Tensor) -> float:
    """Return the Fréchet distance of two sets ``[N, F]``, ``[M, F]``: ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``.

    Heusel et al. 2017, arXiv 1706.08500, eq. 6, by torchmetrics in float64 outside autocast, so that it is real and
    finite for rank-deficient covariances too; it is at least 0. The features are centred first, which changes the
    rounding only.
    """
    with torch.autocast(real.device.type, enabled=False):
        metric = FrechetInceptionDistance(feature=Given(real.shape[1])).set_dtype(torch.float64)
        centre = real.double().mean(0)
        metric.update(real.double() - centre, real=True)
        metric.update(other.double() - centre, real=False)
        return max(0.0, metric.compute().item())


def bootstrapped_frechet(real: Tensor, other: Tensor, repeats: int) -> Estimate:
    """Return the Fréchet distance and its standard error, from ``repeats`` resamplings of both sets with replacement.

    Only the error is taken from them, as resampled sets are effectively smaller, and their distances larger. For sets
    from one distribution, such as the floor, the error is about 1.5 times too large (by simulation).
    """
    draws = [
        frechet(real[torch.randint(len(real), (len(real),))], other[torch.randint(len(other), (len(other),))])
        for _ in range(repeats)
    ]
    error = torch.tensor(draws, dtype=torch.float64).std().item() if repeats > 1 else float("nan")
    return Estimate(frechet(real, other), error)


def kernel_distance(real: Tensor, other: Tensor, subsets: int = 50) -> Estimate:
    """Return the kernel distance of features ``[N, F]`` and ``[M, F]``, by torchmetrics.

    It is KID's unbiased MMD^2 with a cubic kernel (Binkowski et al. 2018, arXiv 1801.01401), the mean over subsets of
    1,000 images, or of half of the images if there are fewer than 2,000. The variance over subsets of m of N images,
    drawn without replacement, is proportional to ``(1 - m/N) / m``, that over sets of N images to ``1 / N``: this gives
    the standard error. For sets from one distribution, such as the floor, it is about 1.8 times too large (by
    simulation), as the estimate has no linear part there.
    """
    count = min(len(real), len(other))
    size = max(2, min(SUBSET, count // 2))
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*buffer.*"
        )  # https://github.com/Lightning-AI/torchmetrics/issues/468
        metric = KernelInceptionDistance(feature=Given(real.shape[1]), subsets=subsets, subset_size=size)
    metric.set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(other.double(), real=False)
    mean, spread = metric.compute()
    return Estimate(mean.item(), spread.item() * (size / (count - size)) ** 0.5)


def inception_score(logits: Tensor) -> Estimate:
    """Return ``exp E KL(p(y|x) || p(y))`` of classifier logits ``[N, classes]``, by torchmetrics.

    It is between 1 and the number of classes (Salimans et al. 2016, arXiv 1606.03498). Mean and standard error are over
    10 parts, or over fewer, at least 2, if the parts would have fewer than 100 images.
    """
    splits = min(10, max(2, len(logits) // 100))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*buffer.*")
        metric = InceptionScore(feature=Given(logits.shape[1]), splits=splits)
    metric.update(logits.double())
    mean, spread = metric.compute()
    return Estimate(mean.item(), spread.item() / splits**0.5)


class Manifold(NamedTuple):
    """How two sets cover each other, 0 to 1 (density may be larger). A ball reaches to an image's k-th neighbour."""

    precision: float  # share of the others that are in the ball of a real image
    recall: float  # share of the real images that are in the ball of an other one
    density: float  # number of real balls that hold an other image, over k: outliers do not inflate it
    coverage: float  # share of the real images whose own ball holds an other one


def manifold(real: Tensor, other: Tensor, k: int = NEIGHBOURS) -> Manifold:
    """Return precision and recall, density and coverage of features ``[N, F]`` (real) and ``[M, F]`` (other).

    Kynkäänniemi et al. 2019, arXiv 1904.06991, and Naeem et al. 2020, arXiv 2002.09797.
    """
    k = min(k, len(real) - 1, len(other) - 1)
    radius_real, radius_other = radii(real, k), radii(other, k)
    within = torch.zeros(len(other))
    recalled, covered = [], []
    for part, radius in zip(real.double().split(2_000), radius_real.split(2_000), strict=True):
        distances = torch.cdist(part, other.double())
        inside = distances <= radius[:, None]
        within += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances <= radius_other).any(1))
    return Manifold(
        precision=(within > 0).double().mean().item(),
        recall=torch.cat(recalled).double().mean().item(),
        density=(within / k).double().mean().item(),
        coverage=torch.cat(covered).double().mean().item(),
    )


def radii(features: Tensor, k: int) -> Tensor:
    """Return the distance ``[N]`` of each of N features to its k-th nearest other one."""
    parts = [torch.cdist(p, features.double()).kthvalue(k + 1).values for p in features.double().split(2_000)]
    return torch.cat(parts)


def nearest(
    images: Tensor, stored: Callable[[Tensor], Tensor], index: Tensor, at_once: int | None = None
) -> tuple[Tensor, Tensor]:
    """Find the nearest of some stored images to each of N images.

    Args:
        images: ``[N, C, H, W]`` in [0, 1].
        stored: returns stored images ``[m, C, H, W]`` in [0, 1] by their numbers ``[m]``.
        index: the numbers of those to search.
        at_once: stored images in memory as floats; None for at most 1,000, and at most 256 MiB.

    Returns:
        Root mean squared difference over pixels, and number of that image, both ``[N]``.
    """
    flat = images.flatten(1)
    at_once = at_once or max(1, min(1_000, 2**26 // flat.shape[1]))
    best = torch.full((len(flat),), float("inf"))
    where = torch.zeros(len(flat), dtype=torch.long)
    for part in index.split(at_once):
        distance, position = torch.cdist(flat, stored(part).flatten(1)).min(1)
        closer = distance < best
        best[closer], where[closer] = distance[closer], part[position[closer]]
    return best / flat.shape[1] ** 0.5, where
