"""Likelihoods p(x|z): modules from raw decoder outputs to ``torch.distributions`` objects over images.

Every likelihood is an ``nn.Module`` (a learned scale is a parameter) that is called with the decoder's output
``[..., outputs(C), H, W]`` and returns a distribution with event shape ``[C, H, W]``. ``supports`` names the
pixels for which its log-probability is one of the data: see :class:`~src.data.pixels.Pixels`. Gaussians whose scale
depends on the image are in :mod:`src.models.gaussians`, probabilities of the 256 levels in
:mod:`src.models.discretized`.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, ContinuousBernoulli, Distribution, Independent, Normal

from src.data.pixels import Pixels
from src.models.objectives import soft_bound
from src.system.errors import UserError

EVENT_DIMS = 3  # channel, height, width


def bounded_scale(raw: Tensor) -> Tensor:
    """Return scales of pixels from a decoder's outputs, between exp(-8) and exp(4) by :func:`soft_bound`.

    The full range of a pixel is 1, so the smallest is a twelfth of a grey level; an output of 0 gives exp(-2) = 0.14.
    """
    return torch.exp(soft_bound(raw, 6.0) - 2.0)


class Likelihood(nn.Module, ABC):
    """A likelihood states its name and the pixels, if any, for which it is a probability or density of the data."""

    name: str
    supports: Pixels | None

    def outputs(self, channels: int) -> int:
        """Return how many maps a decoder gives for images of so many channels."""
        return channels

    @abstractmethod
    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution with batch shape ``[...]`` and event ``[C, H, W]`` of a decoder's output."""

    def raw_of(self, mean: Tensor) -> Tensor:
        """Return a decoder's output under which the pixels ``[C, H, W]`` have about this mean.

        Raises:
            UserError: nobody has said how.
        """
        raise UserError(f"model.start_at_mean=true needs a likelihood whose mean is set directly, {self.name} is not")

    def is_pseudo(self, pixels: Pixels) -> bool:
        """Return whether log p(x|z) is neither a probability nor a density of such pixels: a pseudo-likelihood."""
        return False

    def bits_per_dim(self, nats: float, dimensions: int, pixels: Pixels) -> float | None:
        """Convert nats per image to bits per pixel and channel; None where the pixels are not those it models.

        A density of dequantized pixels bounds the probability of their 256 levels (Theis et al. 2016,
        arXiv 1511.01844, section 3.1): hence the log2(256) = 8 bits that are added to a density on [0, 1].

        >>> BernoulliLikelihood().bits_per_dim(784 * math.log(2), 784, Pixels.BINARY)
        1.0
        >>> GaussianLikelihood().bits_per_dim(0.0, 784, Pixels.DEQUANTIZED)
        8.0
        """
        if pixels is not self.supports:
            return None
        return nats / dimensions / math.log(2) + (8.0 if pixels is Pixels.DEQUANTIZED else 0.0)


class BernoulliLikelihood(Likelihood):
    """Model binary pixels by ``p(x|z) = prod_i p_i^x_i (1 - p_i)^(1 - x_i)``; the decoder gives logits of ``p_i``.

    With grey pixels it is the binary cross-entropy of the tutorials: a pseudo-likelihood, whose minimum over p is the
    pixel's own entropy, not 0.

    >>> pixel = BernoulliLikelihood()(torch.zeros(1, 1, 1))  # logit 0: a fair coin
    >>> pixel.log_prob(torch.ones(1, 1, 1)).exp()
    tensor(0.5000)
    >>> BernoulliLikelihood().is_pseudo(Pixels.GREY), BernoulliLikelihood().is_pseudo(Pixels.BINARY)
    (True, False)
    """

    name = "bernoulli"
    supports = Pixels.BINARY

    def is_pseudo(self, pixels: Pixels) -> bool:
        return pixels is not Pixels.BINARY

    def forward(self, raw: Tensor) -> Distribution:
        return Independent(Bernoulli(logits=raw, validate_args=False), EVENT_DIMS, validate_args=False)

    def raw_of(self, mean: Tensor) -> Tensor:
        """Return the logits of pixels, each at least 0.001 from 0 and 1."""
        return torch.logit(mean, eps=1e-3)


class StableContinuousBernoulli(ContinuousBernoulli):
    """torch's continuous Bernoulli with a normaliser whose value and gradient are exact at any logit.

    torch clamps the probability (https://github.com/pytorch/pytorch/issues/72525): in float32 the density of a logit of
    -30 integrates to 0.53 and has no gradient. In logits ``h`` the constant is ``h / tanh(h / 2)`` (Loaiza-Ganem &
    Cunningham 2019, eq. 7) and the mean ``1 / (1 - exp(-h)) - 1 / h``; both have a removable singularity at 0.
    """

    def _cont_bern_log_norm(self) -> Tensor:
        small = self.logits.abs() < 0.1
        safe = torch.where(small, torch.ones_like(self.logits), self.logits)
        near = torch.where(small, self.logits, torch.zeros_like(self.logits))  # powers of large logits overflow
        series = math.log(2) + near**2 / 12 - 7 * near**4 / 1440
        return torch.where(small, series, torch.log(safe / torch.tanh(safe / 2)))

    @property
    def mean(self) -> Tensor:
        """Return the expected pixel, in (0, 1)."""
        small = self.logits.abs() < 0.01
        safe = torch.where(small, torch.ones_like(self.logits), self.logits)
        return torch.where(small, 0.5 + self.logits / 12, -1 / torch.expm1(-safe) - 1 / safe)


class ContinuousBernoulliLikelihood(Likelihood):
    """Model pixels in [0, 1] by the Bernoulli formula times the constant that makes it a density.

    Loaiza-Ganem & Cunningham 2019, arXiv 1907.06845. At logit 0 the density is uniform:

    >>> ContinuousBernoulliLikelihood()(torch.zeros(1, 1, 1)).log_prob(torch.full((1, 1, 1), 0.3)).exp()
    tensor(1.)
    """

    name = "continuous_bernoulli"
    supports = Pixels.DEQUANTIZED

    def forward(self, raw: Tensor) -> Distribution:
        return Independent(StableContinuousBernoulli(logits=raw, validate_args=False), EVENT_DIMS, validate_args=False)


class StableNormal(Normal):
    """torch's Gaussian, but errors are divided by the scale before they are squared, so that no square overflows."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, of the shape that value and parameters broadcast to."""
        return -0.5 * ((value - self.loc) / self.scale) ** 2 - self.scale.log() - 0.5 * math.log(2 * math.pi)


class GaussianLikelihood(Likelihood):
    """Model pixels as independent Gaussians of one shared scale; the decoder gives the means.

    >>> GaussianLikelihood(scale=1.0)(torch.zeros(1, 1, 1)).log_prob(torch.zeros(1, 1, 1))  # -log(2 pi) / 2
    tensor(-0.9189)

    Args:
        scale: standard deviation of a pixel, in units of the full range [0, 1]; the initial one if it is learned.
        learned: learn the scale with the weights (Rybkin et al. 2020, sigma-VAE, arXiv 2006.13202). It is kept
            above ``exp(-6)``, about half a grey level, by a softplus, so its gradient never dies.

    Raises:
        UserError: the scale is not above that bound, or is too large for float32.
    """

    name = "gaussian"
    supports = Pixels.DEQUANTIZED
    MIN_LOG_SCALE = -6.0
    MAX_LOG_SCALE = 80.0  # of an initial scale; exp overflows float32 at 88

    def __init__(self, scale: float = 0.1, learned: bool = False) -> None:
        super().__init__()
        least, most = math.exp(self.MIN_LOG_SCALE), math.exp(self.MAX_LOG_SCALE)
        if not least < scale < most:
            raise UserError(
                f"model.likelihood.scale={scale}: give a standard deviation above {least:.4f} and below {most:.0e}"
            )
        excess = math.log(scale) - self.MIN_LOG_SCALE
        raw_scale = torch.tensor(math.log(math.expm1(excess)))
        if learned:
            self.raw_scale = nn.Parameter(raw_scale)
        else:
            self.register_buffer("raw_scale", raw_scale)

    @property
    def scale(self) -> Tensor:
        """Return the shared standard deviation, a scalar."""
        return torch.exp(self.MIN_LOG_SCALE + nn.functional.softplus(self.raw_scale))

    def forward(self, raw: Tensor) -> Distribution:
        return Independent(StableNormal(raw, self.scale, validate_args=False), EVENT_DIMS, validate_args=False)

    def raw_of(self, mean: Tensor) -> Tensor:
        """Return the mean, which is the decoder's output."""
        return mean
