"""Gaussian likelihoods whose scale is not one number for all images: found, integrated out, or predicted."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Gamma, Independent, constraints

from src.data.pixels import Pixels
from src.models.likelihoods import EVENT_DIMS, GaussianLikelihood, Likelihood, StableNormal, bounded_scale

IMAGE = (-3, -2, -1)  # channel, height, width


class ImageDistribution(Distribution):
    """A distribution over whole images around ``mean``, batch shape ``[...]`` and event ``[C, H, W]``."""

    arg_constraints: ClassVar[dict] = {}
    support = constraints.independent(constraints.real, EVENT_DIMS)

    def __init__(self, mean: Tensor) -> None:
        self._mean = mean
        super().__init__(mean.shape[:-EVENT_DIMS], mean.shape[-EVENT_DIMS:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Return the image in the middle, ``[..., C, H, W]``."""
        return self._mean


class BestScaleNormal(ImageDistribution):
    """A Gaussian that has the scale that suits an image best, where that image is known."""

    LEAST = math.exp(2 * GaussianLikelihood.MIN_LOG_SCALE)  # variance

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the largest log density ``[...]`` that images ``[..., C, H, W]`` have under any scale."""
        mse = (value - self.mean).square().mean(IMAGE)
        variance = mse.clamp_min(self.LEAST)
        return -0.5 * self.event_shape.numel() * (torch.log(2 * math.pi * variance) + mse / variance)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return the mean ``sample_shape`` times: without an image there is no scale to draw noise with."""
        return self.mean.detach().expand(*sample_shape, *self.mean.shape)


class OptimalGaussianLikelihood(Likelihood):
    """Score images by the Gaussian of the best shared scale of each: sigma-VAE (Rybkin et al. 2020, arXiv 2006.13202).

    The best variance of an image of n numbers is its mean squared error, so ``-log p = n/2 (log(2 pi MSE) + 1)``:
    nothing is to be tuned, and bright or noisy images weigh no more than others. The scale stays above that of
    :class:`~src.models.likelihoods.GaussianLikelihood`, exp(-6).

    As the scale depends on the image, this is a maximum of densities and no density: over all images it integrates to
    more than 1. So it is a pseudo-likelihood of any pixels and gives no bits per dimension; bounds on log p(x) are
    bounds on the same maximum. :class:`StudentLikelihood` is the density that it is nearest to.

    >>> likelihood = OptimalGaussianLikelihood()(torch.zeros(1, 2, 2))
    >>> likelihood.log_prob(torch.full((1, 2, 2), 0.1)), likelihood.log_prob(torch.full((1, 2, 2), 0.2))
    (tensor(3.5346), tensor(0.7620))
    """

    name = "gaussian_optimal"
    supports = None

    def is_pseudo(self, pixels: Pixels) -> bool:
        return True

    def forward(self, raw: Tensor) -> Distribution:
        return BestScaleNormal(raw)


class StudentT(ImageDistribution):
    """Gaussian noise around an image whose variance, one for the image, is inverse gamma with shape and rate.

    Args:
        mean: ``[..., C, H, W]``.
        shape: of the inverse gamma distribution, a scalar.
        rate: of the same, a scalar.
    """

    def __init__(self, mean: Tensor, shape: Tensor, rate: Tensor) -> None:
        self.shape, self.rate = shape, rate
        super().__init__(mean)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density ``[...]`` of images ``[..., C, H, W]``."""
        half = self.event_shape.numel() / 2
        errors = (value - self.mean).square().sum(IMAGE)
        constant = (
            torch.lgamma(self.shape + half) - torch.lgamma(self.shape) - half * torch.log(2 * math.pi * self.rate)
        )
        return constant - (self.shape + half) * torch.log1p(errors / (2 * self.rate))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw a variance for each image, then the image."""
        precision = Gamma(self.shape, self.rate).sample((*sample_shape, *self.batch_shape, 1, 1, 1))
        mean = self.mean.expand(*sample_shape, *self.mean.shape)
        return mean + torch.randn_like(mean) / precision.sqrt()


class StudentLikelihood(Likelihood):
    """Model the noise of an image by a Gaussian of unknown scale: what sigma-VAE maximises over is integrated out.

    The variance v of an image, one for all of its n numbers, has the distribution InvGamma(a, b), whose two parameters
    are learned with the weights. ``integral of N(x; mean, v I) InvGamma(v; a, b) dv`` is a multivariate Student's t:
    ``Gamma(n/2 + a) / Gamma(a) (2 pi b)^(-n/2) (1 + |x - mean|^2 / 2b)^(-n/2 - a)``. Its gradient is that of
    :class:`OptimalGaussianLikelihood` to within a / n, and it is a density of the data, some nats an image below that
    maximum.

    >>> likelihood = StudentLikelihood()(torch.zeros(1, 28, 28))
    >>> best = OptimalGaussianLikelihood()(torch.zeros(1, 28, 28))
    >>> x = torch.full((1, 28, 28), 0.1)
    >>> (best.log_prob(x) - likelihood.log_prob(x)).detach()
    tensor(3.0679)
    """

    name = "student"
    supports = Pixels.DEQUANTIZED

    def __init__(self) -> None:
        super().__init__()
        self.log_shape = nn.Parameter(torch.tensor(0.0))
        self.log_rate = nn.Parameter(torch.tensor(math.log(0.01)))  # a scale of 0.1

    def forward(self, raw: Tensor) -> Distribution:
        return StudentT(raw, self.log_shape.exp(), self.log_rate.exp())


class PixelwiseGaussianLikelihood(Likelihood):
    """Model pixels as independent Gaussians; the decoder gives the mean and the scale of each.

    Kingma & Welling 2014, arXiv 1312.6114, appendix C.2. Without bounds such a density grows for ever where pixels are
    constant (Mattei & Frellsen 2018, arXiv 1802.04826): the scales are those of
    :func:`~src.models.likelihoods.bounded_scale`. Dequantized pixels have the noise of a grey level, 0.0011, anyway.

    >>> pixel = PixelwiseGaussianLikelihood()(torch.tensor([0.5, -10.0])[:, None, None])  # a mean and a raw scale
    >>> pixel.mean, pixel.stddev
    (tensor([[[0.5000]]]), tensor([[[0.0008]]]))
    """

    name = "gaussian_pixelwise"
    supports = Pixels.DEQUANTIZED

    def outputs(self, channels: int) -> int:
        return 2 * channels

    def forward(self, raw: Tensor) -> Distribution:
        mean, scale = raw.chunk(2, dim=-EVENT_DIMS)
        return Independent(
            StableNormal(mean, bounded_scale(scale), validate_args=False), EVENT_DIMS, validate_args=False
        )
