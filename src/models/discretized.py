"""Likelihoods that give the 256 levels of a pixel probabilities: grey images are modelled as they are stored."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Beta, Binomial, Distribution, Independent, constraints
from torch.nn.functional import logsigmoid, pad, softplus

from src.data.pixels import Pixels
from src.models.likelihoods import EVENT_DIMS, Likelihood, bounded_scale
from src.models.objectives import soft_bound
from src.system.keys import require

TOP = 255  # the brightest level; pixels are levels divided by it


def levels_of(x: Tensor) -> Tensor:
    """Return the levels 0, ..., 255 of pixels in [0, 1], as floats."""
    return (TOP * x).round().clamp(0, TOP)


class LevelLikelihood(Likelihood):
    """Pixels are 256 levels whose probabilities sum to 1, so nats are bits of the images as they are stored.

    Noise would be rounded off again: dequantized pixels get the probability of another level, a pseudo-likelihood.
    """

    supports = Pixels.GREY

    def is_pseudo(self, pixels: Pixels) -> bool:
        return pixels in (Pixels.DEQUANTIZED, Pixels.FEATURES)


def log_probability(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return the log probability of the level of pixels in [0, 1] under a logistic distribution cut into 256 levels.

    A level has the mass of the interval that is rounded to it: all below for level 0, all above for level 255. With the
    sigmoid s and the interval's ends a < b, counted in scales from the mean, that is ``s(b) - s(a)``; it is computed as
    ``s(b) s(-a) (1 - exp(a - b))``, whose logarithm is exact wherever the mean is and however small the scale.

    >>> x = torch.arange(256) / 255
    >>> log_probability(x, mean=torch.tensor(3.0), scale=torch.tensor(1e-3)).exp().sum()
    tensor(1.)
    """
    level, mean, scale = levels_of(x), TOP * mean, TOP * scale  # neighbours share an end to the last digit
    above, below = level < TOP, level > 0
    upper = torch.where(above, logsigmoid((level + 0.5 - mean) / scale), 0.0)
    lower = torch.where(below, logsigmoid((mean - level + 0.5) / scale), 0.0)
    return upper + lower + torch.where(above & below, torch.log(-torch.expm1(-1 / scale)), 0.0)


class LogisticMixture(Distribution):
    """A mixture of M discretized logistics for each pixel, whose channels share the component.

    In a component the mean of a channel moves with the channels before it, ``mean_c + sum_j w_cj (x_j - 1/2)``, so
    the joint of the channels is a product of conditionals (Salimans et al. 2017, arXiv 1701.05517, eq. 3).

    Args:
        logits: of the components, ``[..., M, H, W]``.
        mean: ``[..., M, C, H, W]``, where the pixels' range is [0, 1].
        scale: of the same shape.
        weights: w of channel 1, then those of channel 2: ``[..., M, C (C - 1) / 2, H, W]``.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.independent(constraints.unit_interval, EVENT_DIMS)

    def __init__(self, logits: Tensor, mean: Tensor, scale: Tensor, weights: Tensor) -> None:
        self.logits, self.means, self.scale, self.weights = logits, mean, scale, weights
        super().__init__(mean.shape[:-4], mean.shape[-3:], validate_args=False)

    def _channels(self, before: Tensor) -> Tensor:
        """Return the mean ``[..., M, H, W]`` of the channel that follows channels ``[..., M or 1, c, H, W]``."""
        channel = before.shape[-3]
        first = channel * (channel - 1) // 2
        shift = self.weights[..., first : first + channel, :, :] * (before - 0.5)
        return self.means[..., channel, :, :] + shift.sum(-3)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability ``[...]`` of images ``[..., C, H, W]``, whose pixels are levels / 255."""
        x = value.unsqueeze(-4)
        parts = torch.log_softmax(self.logits, -3)
        for c in range(x.shape[-3]):
            mean = self._channels(x[..., :c, :, :])
            parts = parts + log_probability(x[..., c, :, :], mean, self.scale[..., c, :, :])
        return torch.logsumexp(parts, -3).sum((-2, -1))

    @property
    def mean(self) -> Tensor:
        """Return the expected image ``[..., C, H, W]``, in [0, 1], to within half a level.

        It is that of logistics cut off at 0 and 1, before they are rounded; a channel's mean follows from the expected
        channels before it, which is exact up to the cut.
        """
        image = self.means[..., :0, :, :]
        for c in range(self.event_shape[0]):
            mean, scale = self._channels(image), self.scale[..., c, :, :]
            cut = scale * (softplus(mean / scale) - softplus((mean - 1) / scale))
            image = torch.cat([image, cut.clamp(0, 1).unsqueeze(-3)], -3)
        return (torch.softmax(self.logits, -3).unsqueeze(-3) * image).sum(-4)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw a component for each pixel, then its channels one after the other: levels / 255."""
        logits = self.logits.expand(*sample_shape, *self.logits.shape)
        chosen = (logits - torch.empty_like(logits).exponential_().log()).argmax(-3, keepdim=True).unsqueeze(-3)

        def of_chosen(values: Tensor) -> Tensor:
            shape = (*chosen.shape[:-4], *values.shape[-4:])
            return values.expand(shape).gather(-4, chosen.expand(*chosen.shape[:-3], *shape[-3:]))

        one = LogisticMixture(logits[..., :1, :, :], *map(of_chosen, (self.means, self.scale, self.weights)))
        image = one.means[..., :0, :, :]
        for c in range(self.event_shape[0]):
            noise = torch.logit(torch.rand_like(one.means[..., 0, :, :]))
            channel = levels_of(one._channels(image) + one.scale[..., c, :, :] * noise) / TOP
            image = torch.cat([image, channel.unsqueeze(-3)], -3)
        return image.squeeze(-4)


class DiscretizedLogisticLikelihood(LevelLikelihood):
    """Model each pixel by a mixture of logistic distributions that are cut into the 256 levels.

    PixelCNN++ (Salimans et al. 2017, arXiv 1701.05517); with one component Kingma et al. 2016, arXiv 1606.04934. The
    decoder gives logits, means, log-scales and, for colours, the weights of the channels before: 3 M numbers a grey
    pixel and 10 M a coloured one, without logits for one component.

    >>> DiscretizedLogisticLikelihood().outputs(1), DiscretizedLogisticLikelihood(10).outputs(3)
    (2, 100)
    >>> pixel = DiscretizedLogisticLikelihood()(torch.tensor([0.0, -100.0])[:, None, None])  # raw mean and scale
    >>> pixel.mean, pixel.log_prob(torch.full((1, 1, 1), 128 / 255)).exp()  # the mean is between levels 127 and 128
    (tensor([[[0.5000]]]), tensor(0.5000))

    Args:
        components: logistic distributions M of each pixel.

    Raises:
        UserError: there is no component.
    """

    def __init__(self, components: int = 1) -> None:
        super().__init__()
        require("model.likelihood", components=components)
        self.components = components
        self.name = "discretized_logistic" if components == 1 else "logistic_mixture"

    def outputs(self, channels: int) -> int:
        logits = 0 if self.components == 1 else 1
        return self.components * (logits + 2 * channels + channels * (channels - 1) // 2)

    def forward(self, raw: Tensor) -> Distribution:
        raw = raw.unflatten(-EVENT_DIMS, (self.components, -1))
        if self.components == 1:
            raw = pad(raw, (0, 0, 0, 0, 1, 0))  # a logit of 0
        numbers = raw.shape[-EVENT_DIMS]
        channels = (math.isqrt(8 * numbers + 1) - 3) // 2  # of 1 + 2 C + C (C - 1) / 2 numbers
        logits, mean, scale, weights = raw.split([1, channels, channels, numbers - 1 - 2 * channels], -EVENT_DIMS)
        # Components begin where they share the range, not all in its middle.
        start = (torch.arange(self.components, device=raw.device) + 0.5) / self.components
        return LogisticMixture(
            logits.squeeze(-EVENT_DIMS), mean + start[:, None, None, None], bounded_scale(scale), torch.tanh(weights)
        )


class BetaBinomial(Distribution):
    """The number of 255 trials that succeed with a probability drawn from Beta(a, b), divided by 255.

    Args:
        a, b: positive, float64, of one shape, which is the batch shape.
    """

    arg_constraints: ClassVar[dict] = {}
    support = constraints.unit_interval

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b
        super().__init__(a.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of levels / 255, of the shape that value and parameters broadcast to."""
        level = levels_of(value).double()
        rest, a, b = TOP - level, self.a, self.b
        choices = math.lgamma(TOP + 1) - torch.lgamma(level + 1) - torch.lgamma(rest + 1)
        drawn = torch.lgamma(level + a) + torch.lgamma(rest + b) - torch.lgamma(TOP + a + b)
        return (choices + drawn + torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)).to(value.dtype)

    @property
    def mean(self) -> Tensor:
        """Return the expected pixel, in (0, 1)."""
        return (self.a / (self.a + self.b)).float()

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw levels / 255."""
        return Binomial(TOP, Beta(self.a, self.b).sample(sample_shape)).sample().float() / TOP


class BetaBinomialLikelihood(LevelLikelihood):
    """Model the level of a pixel as beta-binomial, with 255 trials (as Townsend et al. 2019, arXiv 1901.04866).

    The decoder gives log a and log b, bounded by 10 by :func:`soft_bound`; 0 and 0 are the uniform distribution. A
    black or white pixel can be certain, one in between cannot: at level 128 the standard deviation is at least a
    binomial's, 8 levels. Differences of large log-gammas need float64.

    >>> BetaBinomialLikelihood()(torch.zeros(2, 1, 1)).log_prob(torch.ones(1, 1, 1)).exp() * 256
    tensor(1.)
    """

    name = "beta_binomial"

    def outputs(self, channels: int) -> int:
        return 2 * channels

    def forward(self, raw: Tensor) -> Distribution:
        a, b = soft_bound(raw.double(), 10.0).exp().chunk(2, dim=-EVENT_DIMS)
        return Independent(BetaBinomial(a, b), EVENT_DIMS, validate_args=False)
