"""Priors p(z) over latent codes, as modules that return ``torch.distributions`` objects.

A prior is made with ``latent_dim`` and ``images``: what the model is told of its training images, their shape at least.
It is called with a function from images to q(z|x), which priors that are made of images use, and in training with the
positions of the batch's images among the training images; it returns a distribution with event ``[latent_dim]``.
"""

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal, constraints

from src.data.training_images import TrainingImages
from src.metrics.posterior import log_mixture
from src.models.flows import Flow
from src.models.objectives import has_mean, is_gaussian
from src.models.posteriors import bounded_scale
from src.system.errors import UserError
from src.system.keys import require

Encode = Callable[[Tensor], Distribution]  # images [C, ...] to q(z|x), as evaluation computes it


class StandardNormal(nn.Module):
    """The prior ``N(0, I)`` in ``latent_dim`` dimensions: no batch shape, event ``[latent_dim]``.

    >>> prior = StandardNormal(2)()
    >>> prior.batch_shape, prior.event_shape, prior.log_prob(torch.zeros(2))  # -log(2 pi)
    (torch.Size([]), torch.Size([2]), tensor(-1.8379))
    """

    def __init__(self, latent_dim: int, images: TrainingImages | None = None) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self, encode: Encode | None = None, positions: Tensor | None = None) -> Independent:
        """Return the prior, on the device of the module."""
        return Independent(Normal(self.loc, self.scale, validate_args=False), 1, validate_args=False)


class GaussianMixture(Distribution):
    """A mixture ``sum_c w_c N(m_c, diag(s_c^2))`` of C Gaussians over D numbers, by matrix products.

    It is what ``MixtureSameFamily`` computes with a tensor ``[..., C, D]`` in between, ten times as fast. Densities are
    computed in float64 and returned in the precision of the code.

    >>> two = GaussianMixture(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
    >>> two.log_prob(torch.zeros(1)), two.mean, two.variance  # -log(2 pi) / 2 - 1 / 2
    (tensor(-1.4189), tensor([0.]), tensor([2.]))

    Args:
        mean: of each component, ``[C, D]``.
        scale: standard deviations, ``[C, D]``.
        log_weights: ``[C]``, or ``[B, C]`` for a batch of mixtures of the same Gaussians; None for equal ones.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector

    def __init__(self, mean: Tensor, scale: Tensor, log_weights: Tensor | None = None) -> None:
        self.means, self.scales, self.log_weights = mean, scale, log_weights
        batch = log_weights.shape[:-1] if log_weights is not None else torch.Size()
        super().__init__(batch, mean.shape[1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of codes ``[..., *batch, D]``: ``[..., *batch]``."""
        weights = self.log_weights
        if weights is not None and weights.dim() == 2:
            weights = weights.expand(*value.shape[:-1], -1).flatten(0, -2)
        z = value.reshape(-1, value.shape[-1])
        return log_mixture(z, self.means, self.scales, weights).to(value.dtype).reshape(value.shape[:-1])

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Draw codes ``[*sample_shape, *batch, D]``."""
        with torch.no_grad():
            chosen = Categorical(self.weights.expand(*self.batch_shape, -1)).sample(sample_shape)
            mean, scale = self.means[chosen], self.scales[chosen]
            return mean + scale * torch.randn_like(mean)

    @property
    def weights(self) -> Tensor:
        """Return the weights of the components, ``[*batch, C]``."""
        return (
            torch.full_like(self.means[:, 0], 1 / len(self.means))
            if self.log_weights is None
            else (self.log_weights.softmax(-1))
        )

    @property
    def mean(self) -> Tensor:
        """Return the mean ``[*batch, D]``."""
        return self.weights @ self.means

    @property
    def variance(self) -> Tensor:
        """Return the variance of each number of the code, ``[*batch, D]``."""
        centred = self.means - self.mean.unsqueeze(-2)
        return (self.weights.unsqueeze(-1) * (self.scales**2 + centred**2)).sum(-2)


class MixturePrior(nn.Module):
    """A mixture of Gaussians whose weights, means and scales are learned.

    It begins near N(0, I): the means are drawn so closely that the components differ by a nat or two at a typical
    code, and their scales make the variance of the whole 1. Components that begin alike would learn alike.

    Args:
        latent_dim: latent dimensions D.
        images: see :mod:`src.models.priors`; not used.
        components: C.
    """

    def __init__(self, latent_dim: int, images: TrainingImages | None = None, components: int = 500) -> None:
        super().__init__()
        require("model.prior", components=components)
        spread = min(0.5, 2 / latent_dim)  # of the variance of the whole
        self.mean = nn.Parameter(spread**0.5 * torch.randn(components, latent_dim))
        self.log_variance = nn.Parameter(torch.full((components, latent_dim), math.log(1 - spread)))
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self, encode: Encode | None = None, positions: Tensor | None = None) -> GaussianMixture:
        """Return the mixture: no batch shape, event ``[D]``."""
        return GaussianMixture(self.mean, bounded_scale(self.log_variance), self.logits.log_softmax(0))


class VampPrior(nn.Module):
    """The mixture ``1/C sum_c q(z|u_c)`` of the posteriors of C learned pseudo-inputs, images that need not exist.

    Tomczak & Welling 2018, arXiv 1705.07120. The pseudo-inputs are ``u = sigmoid(4 v)``: in (0, 1), with a gradient
    everywhere and of slope 1 at 1/2, so that Adam moves a pixel by about its rate. (The paper cuts them off at 0 and
    1, where a pixel has no gradient.)

    Args:
        latent_dim: latent dimensions D; not used.
        images: of the training; the pseudo-inputs begin at them.
        components: C.
        start: ``images``: random training images, each once; ``mean``: their mean with Gaussian noise.

    Raises:
        UserError: a value is impossible, or the model was told of no training images.
    """

    EDGE = 0.05  # distance from 0 and 1 at which pixels begin
    NOISE = 0.1  # standard deviation of the noise added to the mean

    def __init__(
        self,
        latent_dim: int,
        images: TrainingImages,
        components: int = 500,
        start: Literal["images", "mean"] = "images",
    ) -> None:
        super().__init__()
        require("model.prior", components=components, start=start)
        if start == "images":
            rounds = -(-components // len(images))
            chosen = torch.cat([torch.randperm(len(images)) for _ in range(rounds)])[:components]
            pixels = images[chosen]
        else:
            pixels = images.mean + self.NOISE * torch.randn(components, *images.shape)
        self.values = nn.Parameter(torch.logit(pixels, eps=self.EDGE) / 4)

    def check(self, posterior: Distribution | None) -> None:
        """Raise a UserError unless such posteriors have a density at codes that others drew, in one pass."""
        if isinstance(posterior, Flow):
            raise UserError(
                "prior@model.prior=vamp takes the density of every component at every code, and that of a flow takes a "
                "pass for each latent or is not known: choose posterior@model.posterior=gaussian, full_gaussian or "
                "mixture"
            )

    @property
    def inputs(self) -> Tensor:
        """Return the pseudo-inputs ``[C, *image]``, in (0, 1)."""
        return torch.sigmoid(4 * self.values)

    def forward(self, encode: Encode, positions: Tensor | None = None) -> Distribution:
        """Return the mixture: no batch shape, event ``[D]``."""
        posterior = encode(self.inputs)
        if is_gaussian(posterior):
            return GaussianMixture(posterior.mean, posterior.stddev)
        equal = Categorical(logits=self.values.new_zeros(len(self.values)))
        return MixtureSameFamily(equal, posterior, validate_args=False)


class ExemplarPrior(nn.Module):
    """The mixture ``1/N sum_n N(m(x_n), s^2 I)`` around the codes of the training images, with one learned scale s.

    Norouzi et al. 2020, arXiv 2004.04795. m(x) is the mean of q(z|x). Evaluation takes all N images, encoded once for
    its weights. A training step takes ``components`` of them, drawn anew without replacement; the image whose
    rate it is leaves itself out, or the posterior would be rewarded for its own copy. The density is unbiased by the
    choice, its logarithm is on average too low: the rate of training is an upper bound, that of evaluation exact.

    Args:
        latent_dim: latent dimensions D; not used.
        images: of the training.
        components: exemplars of a training step.

    Raises:
        UserError: there are too few.
    """

    def __init__(self, latent_dim: int, images: TrainingImages, components: int = 500) -> None:
        super().__init__()
        require("model.prior", components=components)
        if components < 2:
            raise UserError(f"model.prior.components={components}: an image leaves itself out, so give at least 2")
        self.images = images
        self.components = components
        self.log_variance = nn.Parameter(torch.zeros(()))

    def check(self, posterior: Distribution | None) -> None:
        """Raise a UserError unless such posteriors have a mean."""
        if posterior is not None and not has_mean(posterior):
            raise UserError(
                "prior@model.prior=exemplar is made of the means of posteriors, and this one has none: choose "
                "posterior@model.posterior=gaussian, full_gaussian or mixture"
            )

    def forward(self, encode: Encode, positions: Tensor | None = None) -> GaussianMixture:
        """Return the mixture, event ``[D]``: a batch ``[B]`` of them for images at ``positions`` ``[B]``."""
        if not self.training:
            parts = [encode(self._at(chosen)).mean for chosen in self.images.positions()]
            return self._around(torch.cat(parts))
        if (number := len(self.images)) < 2:
            raise UserError("an exemplar prior leaves the image itself out, so it needs 2 training images")
        chosen = torch.randperm(number)[: self.components]
        means = encode(self._at(chosen)).mean
        if positions is None:
            return self._around(means)
        others = positions[:, None] != chosen.to(positions.device)
        weights = torch.where(others, 0.0, -torch.inf) - others.sum(1, keepdim=True).log()
        return self._around(means, weights)

    def _at(self, positions: Tensor) -> Tensor:
        return self.images[positions].to(self.log_variance.device, non_blocking=True)

    def _around(self, means: Tensor, log_weights: Tensor | None = None) -> GaussianMixture:
        return GaussianMixture(means, bounded_scale(self.log_variance).expand_as(means), log_weights)
