"""The evidence lower bound and its parts, as pure functions on tensors.

A VAE is a list of groups of latents, each with posterior, prior and sample, and a likelihood (:class:`Inference`).
Shapes: ``K`` posterior samples, ``B`` images. Unit: nats per image. Nothing here averages over images; the training
step does that, once.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from src.models.autoencoder import Point


class Latent(NamedTuple):
    """A group of latents: a flat VAE has one, a hierarchy several."""

    posterior: Distribution  # q(z|x, groups above)   batch [B] or [K, B]      event latent_shape
    prior: Distribution  # p(z|groups above)     batch [], [B] or [K, B]  event latent_shape
    z: Tensor  # [K, B, *latent_shape], drawn from the posterior


class Inference(NamedTuple):
    """One pass of a batch through a VAE."""

    latents: tuple[Latent, ...]  # top first
    likelihood: Distribution  # p(x|all z)  batch [K, B]  event [C, H, W]
    penalty: Tensor | float = 0.0  # [B], nats: in the loss, never in the elbo (such as a commitment term)


class ElboTerms(NamedTuple):
    """The two parts of the negative ELBO of each image, in nats."""

    distortion: Tensor  # [B]     -E_q log p(x|z), over K samples
    rate: Tensor  # [B]     KL(q(z|x) || p(z)): the sum of its parts
    rates: Tensor  # [B, parts]  the parts of all groups, see :func:`rates`

    @property
    def elbo(self) -> Tensor:
        """Return the evidence lower bound ``[B]``, with weight 1 on the rate (Kingma & Welling 2014, eq. 3)."""
        return -(self.distortion + self.rate)


def distortion(x: Tensor, likelihood: Distribution) -> Tensor:
    """Return ``-log p(x|z)`` of images ``[B, C, H, W]`` under a likelihood ``[K, B]``: ``[K, B]``, summed over pixels.

    Four pixels that a fair coin draws cost 4 log 2 nats:

    >>> coin = Independent(torch.distributions.Bernoulli(probs=torch.full((1, 1, 1, 2, 2), 0.5)), 3)
    >>> distortion(torch.ones(1, 1, 2, 2), coin)
    tensor([[2.7726]])
    """
    return -likelihood.log_prob(x)


def factorizes(distribution: Distribution) -> bool:
    """Return whether a distribution over codes is a product of one over each number of the code.

    >>> from torch.distributions import MultivariateNormal, Normal
    >>> factorizes(Independent(Normal(torch.zeros(2), torch.ones(2)), 1))
    True
    >>> factorizes(MultivariateNormal(torch.zeros(2), torch.eye(2)))
    False
    """
    return isinstance(distribution, Independent) and not distribution.base_dist.event_shape


def is_point(distribution: Distribution) -> bool:
    """Return whether a distribution over codes is a single point, without a density."""
    return isinstance(distribution, Independent) and isinstance(distribution.base_dist, Point)


def is_gaussian(posterior: Distribution) -> bool:
    """Return whether a distribution is a Gaussian of independent latents."""
    return factorizes(posterior) and isinstance(posterior.base_dist, Normal)


def has_mean(distribution: Distribution) -> bool:
    """Return whether the mean of a distribution is known; that of a flow is not."""
    try:
        _ = distribution.mean
    except NotImplementedError:
        return False
    return True


def analytic_rates(posterior: Distribution, prior: Distribution) -> Tensor | None:
    """Return ``KL(q || p)`` in closed form, ``[..., parts]``, in nats; None where torch knows none for the two.

    There is a part for each number of the code where both distributions factorize, else a single one; and none where
    the posterior is a point, which has no density.
    """
    if is_point(posterior):
        return posterior.mean[..., :0]
    try:
        if factorizes(posterior) and factorizes(prior):
            return kl_divergence(posterior.base_dist, prior.base_dist).flatten(-len(posterior.event_shape))
        return kl_divergence(posterior, prior)[..., None]
    except NotImplementedError:
        return None


def rates(latent: Latent) -> Tensor:
    """Return the rate ``KL(q(z|x) || p(z))`` of a group of latents in parts, ``[B, parts]``, in nats.

    For ``N(m, s^2)`` against the standard normal it is ``(m^2 + s^2 - 1) / 2 - log s`` for each latent (Kingma &
    Welling 2014, arXiv 1312.6114, appendix B); a latent whose posterior is the prior costs nothing. Where there is no
    closed form the rate is its estimate ``log q(z|x) - log p(z)``, the mean over the K samples.

    >>> from torch.distributions import Normal
    >>> posterior = Independent(Normal(torch.tensor([[2.0, 0.0]]), torch.ones(1, 2)), 1)
    >>> rates(Latent(posterior, Independent(Normal(torch.zeros(2), torch.ones(2)), 1), posterior.sample((1,))))
    tensor([[2., 0.]])
    """
    posterior, prior, z = latent
    parts = analytic_rates(posterior, prior)
    if parts is None:
        return (posterior.log_prob(z) - prior.log_prob(z)).mean(0)[:, None]
    return parts.mean(0) if parts.dim() == 3 else parts  # [K, B, parts] below other groups


def elbo_terms(x: Tensor, inference: Inference) -> ElboTerms:
    """Return distortion and rate of every image of the batch ``x``; the distortion is the mean over K samples.

    >>> from torch.distributions import Bernoulli, Normal
    >>> prior = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    >>> posterior = Independent(Normal(torch.tensor([[2.0, 0.0]]), torch.ones(1, 2)), 1)
    >>> coin = Independent(Bernoulli(probs=torch.full((1, 1, 1, 2, 2), 0.5)), 3)
    >>> latent = Latent(posterior, prior, posterior.sample((1,)))
    >>> terms = elbo_terms(torch.ones(1, 1, 2, 2), Inference((latent,), coin))
    >>> terms.distortion, terms.rate, terms.elbo
    (tensor([2.7726]), tensor([2.]), tensor([-4.7726]))
    """
    parts = torch.cat([rates(latent) for latent in inference.latents], dim=1)
    return ElboTerms(distortion(x, inference.likelihood).mean(0), parts.sum(-1), parts)


def log_weights(x: Tensor, inference: Inference) -> Tensor:
    """Return the log importance weights ``log p(x|z_k) + log p(z_k) - log q(z_k|x)``, ``[K, B]``, nats in float64.

    Each z_k holds a code of every group.
    """
    weights = inference.likelihood.log_prob(x).double()
    for posterior, prior, z in inference.latents:
        weights = weights + prior.log_prob(z).double() - posterior.log_prob(z).double()
    return weights


def iwae_bound(weights: Tensor) -> Tensor:
    """Return the importance-weighted bound on log p(x), ``[B]``, in nats, from :func:`log_weights`.

    ``log 1/K sum_k w_k`` (Burda et al. 2016, arXiv 1509.00519, eq. 8). It rises to log p(x) with K, from the elbo,
    which is the mean of the log weights:

    >>> weights = torch.tensor([[-101.0], [-99.0]], dtype=torch.float64)
    >>> iwae_bound(weights), weights.mean(0)
    (tensor([-99.5662], dtype=torch.float64), tensor([-100.], dtype=torch.float64))
    """
    return torch.logsumexp(weights, dim=0) - math.log(len(weights))


def mean_bound(weights: Tensor, bounds: int) -> Tensor:
    """Return the mean of so many importance-weighted bounds, among which the K samples are shared out: ``[B]``, nats.

    >>> weights = torch.tensor([[-101.0], [-99.0]], dtype=torch.float64)
    >>> mean_bound(weights, 1), mean_bound(weights, 2)
    (tensor([-99.5662], dtype=torch.float64), tensor([-100.], dtype=torch.float64))
    """
    return iwae_bound(weights.unflatten(0, (bounds, -1)).transpose(0, 1)).mean(0)


def rising(step: int, over: int, cycle: int = 0) -> float:
    """Return a factor that rises from 0 at step 0 to 1 at step ``over``, at once if that is 0, and again each cycle.

    Such a KL weight is a warm-up (Bowman et al. 2016, arXiv 1511.06349), with a ``cycle`` of steps the cyclical
    schedule of Fu et al. 2019, arXiv 1903.10145, eq. 6 and 7.

    >>> [rising(step, 4) for step in (0, 1, 4, 100)], [rising(step, 4, cycle=8) for step in (0, 1, 4, 7, 8, 9)]
    ([0.0, 0.25, 1.0, 1.0], [0.0, 0.25, 1.0, 1.0, 0.0, 0.25])
    """
    if cycle:
        step %= cycle
    return 1.0 if over <= 0 else min(1.0, step / over)


def soft_bound(x: Tensor, limit: float) -> Tensor:
    """Bound ``x`` smoothly by ``+-limit``: ``x / sqrt(1 + (x / limit)^2)``, which is about ``x`` near 0.

    The gradient falls as ``(limit / x)^3``, not exponentially as that of tanh, so a scale that was thrown far off
    can return; a clamp has no gradient there.

    >>> soft_bound(torch.tensor([0.1, 12.0, 1e6]), 12.0)
    tensor([ 0.1000,  8.4853, 12.0000])
    """
    return x / torch.hypot(torch.ones_like(x), x / limit)  # hypot does not overflow where a square would
