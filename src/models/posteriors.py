"""Posteriors q(z|x): modules from an encoder's features to ``torch.distributions`` objects over latent codes.

Each starts at, or close to, a Gaussian of independent latents, and can return to it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, register_kl

from src.models.flows import MADE, AutoregressiveStep, Flow, SylvesterStep
from src.models.objectives import soft_bound
from src.networks.blocks import WideLinear
from src.system.keys import require

MAX_LOG_VARIANCE = 12.0  # standard deviations stay within exp(+-6)


def bounded_scale(log_variance: Tensor) -> Tensor:
    """Return the standard deviations of log-variances that :func:`soft_bound` bounds."""
    return torch.exp(0.5 * soft_bound(log_variance, MAX_LOG_VARIANCE))


def gaussian(mean: Tensor, log_variance: Tensor) -> Independent:
    """Return the Gaussian of independent latents with these parameters ``[..., D]``: event ``[D]``."""
    return Independent(Normal(mean, bounded_scale(log_variance), validate_args=False), 1, validate_args=False)


class GaussianPosterior(WideLinear):
    """Model the code of an image by ``q(z|x) = N(mean, diag(scale^2))``; a linear layer gives means and log-variances.

    Kingma & Welling 2014, arXiv 1312.6114, eq. 9. The log-variance is bounded by :func:`soft_bound`.

    >>> posterior = GaussianPosterior(features=8, latent_dim=2)(torch.zeros(3, 8))
    >>> posterior.batch_shape, posterior.event_shape
    (torch.Size([3]), torch.Size([2]))

    Args:
        features: of the encoder.
        latent_dim: latent dimensions D.
    """

    def __init__(self, features: int, latent_dim: int) -> None:
        super().__init__(features, 2 * latent_dim)

    def forward(self, features: Tensor) -> Independent:
        """Return q(z|x) of images with these features ``[B, features]``: batch ``[B]``, event ``[latent_dim]``."""
        return gaussian(*super().forward(features).chunk(2, dim=-1))


class FullGaussianPosterior(WideLinear):
    """A Gaussian of any covariance ``L L'``: ``L = diag(scale) (I + C)`` with C strictly lower triangular.

    Scales are bounded as those of :class:`GaussianPosterior`. C starts at 0, where the latents are independent. The
    layer has ``D (D + 3) / 2`` outputs: meant for tens of latents.

    >>> posterior = FullGaussianPosterior(features=8, latent_dim=3)(torch.zeros(5, 8))
    >>> posterior.batch_shape, posterior.scale_tril.shape
    (torch.Size([5]), torch.Size([5, 3, 3]))

    Args:
        features: of the encoder.
        latent_dim: latent dimensions D.
    """

    def __init__(self, features: int, latent_dim: int) -> None:
        self.sizes = [latent_dim, latent_dim, latent_dim * (latent_dim - 1) // 2]
        super().__init__(features, sum(self.sizes))
        with torch.no_grad():
            for parameter in (self.weight, self.bias):
                parameter[2 * latent_dim :] = 0

    def forward(self, features: Tensor) -> MultivariateNormal:
        """Return q(z|x) of images with these features ``[B, features]``: batch ``[B]``, event ``[latent_dim]``."""
        mean, log_variance, below = super().forward(features).split(self.sizes, dim=-1)
        root = torch.diag_embed(torch.ones_like(mean))
        row, column = torch.tril_indices(*root.shape[-2:], -1, device=root.device)
        root[..., row, column] = below
        return MultivariateNormal(mean, scale_tril=bounded_scale(log_variance)[..., None] * root, validate_args=False)


@register_kl(MultivariateNormal, Independent)
def kl_of_full_gaussian(q: MultivariateNormal, p: Independent) -> Tensor:
    """Return ``KL(q || p)`` of a Gaussian of any covariance from one of independent latents, which torch lacks.

    >>> independent = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    >>> kl_of_full_gaussian(MultivariateNormal(torch.tensor([2.0, 0.0]), torch.eye(2)), independent)
    tensor(2.)
    """
    if not isinstance(p.base_dist, Normal) or p.event_shape != q.event_shape:
        raise NotImplementedError
    scale = p.base_dist.scale
    root, mean = q.scale_tril / scale[..., None], (q.loc - p.base_dist.loc) / scale
    log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * ((root**2).sum((-2, -1)) + (mean**2).sum(-1) - mean.shape[-1]) - log_det


class IAFPosterior(nn.Module):
    """An inverse autoregressive flow of a Gaussian: every latent may depend on the others (Kingma et al. 2016).

    arXiv 1606.04934; see :class:`~src.models.flows.AutoregressiveStep`. The encoder's features are the context of every
    step. Steps go through the latents forwards and backwards in turns, so no latent stays first, and none is moved:
    with open gates the posterior is that of :class:`GaussianPosterior`.

    Args:
        features: of the encoder.
        latent_dim: latent dimensions D.
        steps: of the flow.
        hidden: units of each of the two hidden layers of a step's network.
    """

    def __init__(self, features: int, latent_dim: int, steps: int = 2, hidden: int = 256) -> None:
        super().__init__()
        require("model.posterior", steps=steps, hidden=hidden)
        self.base = GaussianPosterior(features, latent_dim)
        self.context = WideLinear(features, steps * hidden)
        self.networks = nn.ModuleList(MADE(latent_dim, hidden, backwards=step % 2 == 1) for step in range(steps))

    def forward(self, features: Tensor) -> Flow:
        """Return q(z|x) of images with these features ``[B, features]``: batch ``[B]``, event ``[latent_dim]``."""
        contexts = self.context(features).chunk(len(self.networks), dim=-1)
        return Flow(self.base(features), [*map(AutoregressiveStep, self.networks, contexts)])


class SylvesterPosterior(nn.Module):
    """A Sylvester flow of a Gaussian, with parameters that a linear layer makes of the encoder's features.

    van den Berg et al. 2018, arXiv 1803.05649, with directions by Householder reflections; see
    :class:`~src.models.flows.SylvesterStep`. It draws and weighs codes in one pass, but cannot be inverted: only its
    own draws have a density.

    Args:
        features: of the encoder.
        latent_dim: latent dimensions D.
        steps: of the flow.
        rank: directions M that a step bends, at most D.
    """

    def __init__(self, features: int, latent_dim: int, steps: int = 4, rank: int = 8) -> None:
        super().__init__()
        require("model.posterior", steps=steps, rank=rank)
        self.latent_dim, self.rank, self.steps = latent_dim, min(rank, latent_dim), steps
        self.base = GaussianPosterior(features, latent_dim)
        self.flow = WideLinear(features, steps * sum(SylvesterStep.sizes(latent_dim, self.rank)))

    def forward(self, features: Tensor) -> Flow:
        """Return q(z|x) of images with these features ``[B, features]``: batch ``[B]``, event ``[latent_dim]``."""
        raw = self.flow(features).chunk(self.steps, dim=-1)
        return Flow(self.base(features), [SylvesterStep.of(step, self.latent_dim, self.rank) for step in raw])


class EvenMixture(MixtureSameFamily):
    """A mixture of Gaussians of equal weights whose samples have gradients to the parameters.

    A draw takes a component and then a code of it. The choice does not depend on any parameter, as the weights are
    fixed, so the gradient through the chosen component is unbiased. Each image begins with a random component and takes
    the next one for each further sample: every sample is one of the mixture, and A of them have one of each.

    Args:
        components: batch ``[B, A]``, event ``[D]``.
    """

    has_rsample = True

    def __init__(self, components: Independent) -> None:
        weights = Categorical(logits=torch.zeros_like(components.mean[..., 0]), validate_args=False)
        super().__init__(weights, components, validate_args=False)

    def rsample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        """Return codes ``[*sample_shape, B, D]``."""
        mean, scale = self.component_distribution.mean, self.component_distribution.stddev
        images, components, _ = mean.shape
        first = torch.randint(components, (images,), device=mean.device)
        sample = torch.arange(math.prod(sample_shape), device=mean.device)
        chosen = torch.arange(images, device=mean.device), (first + sample[:, None]) % components
        z = Normal(mean[chosen], scale[chosen], validate_args=False).rsample()
        return z.reshape(*sample_shape, *z.shape[1:])

    def sample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        """Return codes ``[*sample_shape, B, D]`` without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class MixturePosterior(WideLinear):
    """A mixture ``q(z|x) = 1/A sum_a N(m_a, diag(s_a^2))`` of A Gaussians with equal weights.

    Kviman et al. 2023, arXiv 2209.15514; Hotti et al. 2024, arXiv 2406.07083: the density of a sample is that of the
    whole mixture, so components spread over the true posterior. With ``num_samples=A`` a step takes a sample of each
    component, with fewer it is the Some-to-All estimator; both are unbiased. Learned weights would need a gradient that
    samples do not carry.

    >>> posterior = MixturePosterior(features=8, latent_dim=2, components=5)(torch.zeros(3, 8))
    >>> posterior.batch_shape, posterior.rsample((4,)).shape
    (torch.Size([3]), torch.Size([4, 3, 2]))

    Args:
        features: of the encoder.
        latent_dim: latent dimensions D.
        components: A.
    """

    def __init__(self, features: int, latent_dim: int, components: int = 5) -> None:
        require("model.posterior", components=components)
        self.components = components
        super().__init__(features, components * 2 * latent_dim)

    def forward(self, features: Tensor) -> EvenMixture:
        """Return q(z|x) of images with these features ``[B, features]``: batch ``[B]``, event ``[latent_dim]``."""
        parts = super().forward(features).unflatten(-1, (self.components, -1))
        return EvenMixture(gaussian(*parts.chunk(2, dim=-1)))
