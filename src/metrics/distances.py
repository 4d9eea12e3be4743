"""Distances between two sets of images, from features of theirs ``[N, F]``. Everything is float64.

torchmetrics does the Fréchet distance, the kernel distance and the Inception Score; it is handed features that are
already computed, since each of them is used many times (floors, bootstrap, several kinds of samples).
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

ENOUGH = 2_048  # images below which a Fréchet distance in this many dimensions says little
NEIGHBOURS = 5  # k of precision, recall, density and coverage, as Naeem et al. 2020
SUBSET = 1_000  # images in a subset of the kernel distance


class Given(nn.Module):
    """A feature network whose input is the features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    standard_error: float

    def as_dict(self) -> dict[str, float | list[float]]:
        """With the interval that holds the truth 95 times of 100 where the error is normal."""
        reach = 1.96 * self.standard_error
        return {**self._asdict(), "interval_95": [self.value - reach, self.value + reach]}


def frechet(real: Tensor, other: Tensor) -> float:
    """Fréchet distance of two feature sets ``[N, F]``, ``[M, F]``: ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``.

    Heusel et al. 2017, arXiv 1706.08500, eq. 6. By torchmetrics in float64 outside autocast: real and finite also
    where the covariances are rank-deficient; rounding below 0 is cut off. The features are centred first, which
    changes nothing but the rounding.
    """
    with torch.autocast(real.device.type, enabled=False):
        metric = FrechetInceptionDistance(feature=Given(real.shape[1])).set_dtype(torch.float64)
        centre = real.double().mean(0)
        metric.update(real.double() - centre, real=True)
        metric.update(other.double() - centre, real=False)
        return max(0.0, metric.compute().item())


def bootstrapped_frechet(real: Tensor, other: Tensor, repeats: int) -> Estimate:
    """The distance and its standard error, from drawing both sets anew with replacement.

    The error only: the drawn sets themselves are smaller in effect, so their distances lie higher. Of sets from one
    distribution, as of the floor, the error is about 1.5 times too large (by simulation).
    """
    draws = [
        frechet(real[torch.randint(len(real), (len(real),))], other[torch.randint(len(other), (len(other),))])
        for _ in range(repeats)
    ]
    error = torch.tensor(draws, dtype=torch.float64).std().item() if repeats > 1 else float("nan")
    return Estimate(frechet(real, other), error)


def kernel_distance(real: Tensor, other: Tensor, subsets: int = 50) -> Estimate:
    """Kernel distance (KID's unbiased MMD^2, cubic kernel; Binkowski et al. 2018, arXiv 1801.01401), by torchmetrics.

    The mean over subsets of 1,000 images, or of half of them where there are fewer than 2,000. Subsets of m among N
    images, drawn without replacement, spread by ``(1 - m/N) / m`` where N images spread by ``1 / N``: that gives the
    standard error. Of sets from one distribution, as of the floor, it is about 1.8 times too large (by simulation):
    there the estimate has no linear part, and spreads less than that.
    """
    count = min(len(real), len(other))
    size = max(2, min(SUBSET, count // 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*buffer.*")  # the buffer is what we already hold
        metric = KernelInceptionDistance(feature=Given(real.shape[1]), subsets=subsets, subset_size=size)
    metric.set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(other.double(), real=False)
    mean, spread = metric.compute()
    return Estimate(mean.item(), spread.item() * (size / (count - size)) ** 0.5)


def inception_score(logits: Tensor) -> Estimate:
    """``exp E KL(p(y|x) || p(y))`` of classifier logits ``[N, classes]``, 1 to the number of classes, by torchmetrics.

    Salimans et al. 2016, arXiv 1606.03498; mean and standard error over 10 parts, fewer where those would have fewer
    than 100 images, at least 2.
    """
    splits = min(10, max(2, len(logits) // 100))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*buffer.*")
        metric = InceptionScore(feature=Given(logits.shape[1]), splits=splits)
    metric.update(logits.double())
    mean, spread = metric.compute()
    return Estimate(mean.item(), spread.item() / splits**0.5)


class Manifold(NamedTuple):
    """How two sets cover each other, 0 to 1 (density: 0 and up)."""

    precision: float  # part of the others within the reach of a real image
    recall: float  # part of the real ones within the reach of another
    density: float  # real reaches that hold an other, over k: precision that outliers do not inflate
    coverage: float  # part of the real ones that have an other within their own reach


def manifold(real: Tensor, other: Tensor, k: int = NEIGHBOURS) -> Manifold:
    """Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et al. 2020,
    arXiv 2002.09797) of features ``[N, F]`` and ``[M, F]``; an image's reach is the distance to its k-th neighbour.
    """
    k = min(k, len(real) - 1, len(other) - 1)
    reach_real, reach_other = reach(real, k), reach(other, k)
    within = torch.zeros(len(other))
    recalled, covered = [], []
    for part, radius in zip(real.double().split(2_000), reach_real.split(2_000), strict=True):
        distances = torch.cdist(part, other.double())
        inside = distances <= radius[:, None]
        within += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances <= reach_other).any(1))
    return Manifold(
        precision=(within > 0).double().mean().item(),
        recall=torch.cat(recalled).double().mean().item(),
        density=(within / k).double().mean().item(),
        coverage=torch.cat(covered).double().mean().item(),
    )


def reach(features: Tensor, k: int) -> Tensor:
    """Distance of each of N features to its k-th nearest other one ``[N]``."""
    parts = [torch.cdist(p, features.double()).kthvalue(k + 1).values for p in features.double().split(2_000)]
    return torch.cat(parts)


def nearest(images: Tensor, pool: Tensor, index: Tensor, at_once: int | None = None) -> tuple[Tensor, Tensor]:
    """The nearest of some stored images to each of N images.

    Args:
        images: ``[N, C, H, W]`` in [0, 1].
        pool: uint8 ``[M, C, H, W]``, maybe on disk.
        index: which of the pool to look at.
        at_once: stored images in memory as floats; None for at most 1,000, and 256 MiB of them.

    Returns:
        Distance, root mean square over pixels, and place in the pool, both ``[N]``.
    """
    flat = images.flatten(1)
    at_once = at_once or max(1, min(1_000, 2**26 // flat.shape[1]))
    best = torch.full((len(flat),), float("inf"))
    where = torch.zeros(len(flat), dtype=torch.long)
    for part in index.split(at_once):
        distance, position = torch.cdist(flat, pool[part].flatten(1).float() / 255).min(1)
        closer = distance < best
        best[closer], where[closer] = distance[closer], part[position[closer]]
    return best / flat.shape[1] ** 0.5, where
