"""Likelihoods p(x|z): raw decoder outputs in, a ``torch.distributions`` object over images out.

Every likelihood is an ``nn.Module`` (a learned scale is a parameter) that is called with the decoder's output
``[..., parameters * C, H, W]`` and returns a distribution with event shape ``[C, H, W]``. ``supports`` names the
pixels for which its log-probability is one of the data: see :class:`~src.data.pixels.Pixels`.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, ContinuousBernoulli, Distribution, Independent, Normal

from src.data.pixels import Pixels
from src.system.errors import UserError

EVENT_DIMS = 3  # channel, height, width


class Likelihood(nn.Module, ABC):
    """What all likelihoods state: their name and the pixels whose probability (or density) they are."""

    name: str
    supports: Pixels
    parameters_per_pixel = 1

    @abstractmethod
    def forward(self, raw: Tensor) -> Distribution:
        """Decoder output ``[..., C, H, W]`` to a distribution with that batch shape and event ``[C, H, W]``."""

    def is_pseudo(self, pixels: Pixels) -> bool:
        """Whether log p(x|z) is only a pseudo-likelihood: no probability and no density of such pixels.

        Grey pixels under a Bernoulli are the common case: a binary cross-entropy whose minimum over p is the
        pixel's own entropy, not 0.
        """
        return isinstance(self, BernoulliLikelihood) and pixels is not Pixels.BINARY

    def bits_per_dim(self, nats: float, dimensions: int, pixels: Pixels) -> float | None:
        """Nats per image as bits per pixel and channel, or None where the pixels are not what is modelled.

        A density of dequantized pixels bounds the probability of their 256 levels (Theis et al. 2016,
        arXiv 1511.01844, section 3.1): hence the log2(256) = 8 bits that a density on [0, 1] lacks.
        """
        if pixels is not self.supports:
            return None
        return nats / dimensions / math.log(2) + (8.0 if pixels is Pixels.DEQUANTIZED else 0.0)


class BernoulliLikelihood(Likelihood):
    """Binary pixels: ``p(x|z) = prod_i p_i^x_i (1 - p_i)^(1 - x_i)``, the decoder gives logits.

    With grey pixels it is the binary cross-entropy of the tutorials: a pseudo-likelihood.
    """

    name = "bernoulli"
    supports = Pixels.BINARY

    def forward(self, raw: Tensor) -> Distribution:
        return Independent(Bernoulli(logits=raw, validate_args=False), EVENT_DIMS, validate_args=False)


class StableContinuousBernoulli(ContinuousBernoulli):
    """torch's continuous Bernoulli with a normaliser that is exact, with its gradient, at any logit.

    torch clamps the probability inside it: in float32 the density of a logit of -30 integrates to 0.53, and no
    gradient is left. In logits ``h`` the constant is ``h / tanh(h / 2)`` (Loaiza-Ganem & Cunningham 2019, eq. 7) and
    the mean ``1 / (1 - exp(-h)) - 1 / h``; both have a removable singularity at 0.
    """

    def _cont_bern_log_norm(self) -> Tensor:
        small = self.logits.abs() < 0.1
        safe = torch.where(small, torch.ones_like(self.logits), self.logits)
        near = torch.where(small, self.logits, torch.zeros_like(self.logits))  # far off, its powers overflow
        series = math.log(2) + near**2 / 12 - 7 * near**4 / 1440
        return torch.where(small, series, torch.log(safe / torch.tanh(safe / 2)))

    @property
    def mean(self) -> Tensor:
        """Expected pixel, in (0, 1)."""
        small = self.logits.abs() < 0.01
        safe = torch.where(small, torch.ones_like(self.logits), self.logits)
        return torch.where(small, 0.5 + self.logits / 12, -1 / torch.expm1(-safe) - 1 / safe)


class ContinuousBernoulliLikelihood(Likelihood):
    """Pixels in [0, 1]: the Bernoulli formula times the constant that makes it a density.

    Loaiza-Ganem & Cunningham 2019, arXiv 1907.06845.
    """

    name = "continuous_bernoulli"
    supports = Pixels.DEQUANTIZED

    def forward(self, raw: Tensor) -> Distribution:
        return Independent(StableContinuousBernoulli(logits=raw, validate_args=False), EVENT_DIMS, validate_args=False)


class StableNormal(Normal):
    """torch's Gaussian with errors that are divided by the scale before they are squared: neither square overflows."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, of the shape that value and parameters broadcast to."""
        return -0.5 * ((value - self.loc) / self.scale) ** 2 - self.scale.log() - 0.5 * math.log(2 * math.pi)


class GaussianLikelihood(Likelihood):
    """Independent Gaussian pixels of one shared scale: the decoder gives the means.

    Args:
        scale: standard deviation of a pixel, in units of the full range [0, 1]; where it starts if learned.
        learned: learn the scale with the weights (Rybkin et al. 2020, sigma-VAE, arXiv 2006.13202). It is kept
            above ``exp(-6)``, about half a grey level, by a softplus, so its gradient never dies.

    Raises:
        UserError: the scale is not above that bound, or too large for float32.
    """

    name = "gaussian"
    supports = Pixels.DEQUANTIZED
    MIN_LOG_SCALE = -6.0
    MAX_LOG_SCALE = 80.0  # of a start; float32 ends at 88

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
        """The shared standard deviation, a scalar."""
        return torch.exp(self.MIN_LOG_SCALE + nn.functional.softplus(self.raw_scale))

    def forward(self, raw: Tensor) -> Distribution:
        return Independent(StableNormal(raw, self.scale, validate_args=False), EVENT_DIMS, validate_args=False)
