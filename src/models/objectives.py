"""The evidence lower bound and its parts, as pure functions on tensors.

Shapes: ``K`` posterior samples, ``B`` images, ``D`` latent dimensions. Unit: nats per image. Nothing here averages
over images: that is done once, in the training step.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence


class Inference(NamedTuple):
    """One pass of a batch through a VAE."""

    posterior: Independent  # q(z|x)   batch [B]     event [D]
    z: Tensor  # [K, B, D]
    likelihood: Distribution  # p(x|z)   batch [K, B]  event [C, H, W]


class ElboTerms(NamedTuple):
    """The two parts of the negative ELBO of each image, in nats."""

    distortion: Tensor  # [B]     -E_q log p(x|z), over K samples
    rate: Tensor  # [B]     KL(q(z|x) || p(z)): the sum over independent latents
    rate_per_latent: Tensor  # [B, D]  KL(q(z_d|x) || p(z_d))

    @property
    def elbo(self) -> Tensor:
        """Evidence lower bound ``[B]``, whatever weight training puts on the rate (Kingma & Welling 2014, eq. 3)."""
        return -(self.distortion + self.rate)


def distortion(x: Tensor, likelihood: Distribution) -> Tensor:
    """``-log p(x|z)`` in nats, summed over pixels: ``[B, C, H, W]`` under a likelihood ``[K, B]`` to ``[K, B]``."""
    return -likelihood.log_prob(x)


def rate_per_latent(posterior: Independent, prior: Independent) -> Tensor:
    """Analytic ``KL(q(z_d|x) || p(z_d))`` of each latent, ``[B, D]``, in nats.

    For ``N(m, s^2)`` against the standard normal this is ``(m^2 + s^2 - 1) / 2 - log s`` (Kingma & Welling 2014,
    arXiv 1312.6114, appendix B).
    """
    return kl_divergence(posterior.base_dist, prior.base_dist)


def elbo_terms(x: Tensor, inference: Inference, prior: Independent) -> ElboTerms:
    """Distortion and rate of every image of the batch ``x``."""
    rates = rate_per_latent(inference.posterior, prior)
    return ElboTerms(distortion(x, inference.likelihood).mean(0), rates.sum(-1), rates)


def log_weights(x: Tensor, inference: Inference, prior: Independent) -> Tensor:
    """Importance weights ``log p(x|z_k) + log p(z_k) - log q(z_k|x)``, ``[K, B]``, in nats and float64."""
    return (
        inference.likelihood.log_prob(x).double()
        + prior.log_prob(inference.z).double()
        - inference.posterior.log_prob(inference.z).double()
    )


def iwae_bound(weights: Tensor) -> Tensor:
    """Importance-weighted bound on log p(x), ``[B]``, in nats, from :func:`log_weights`; rises to log p(x) with K.

    ``log 1/K sum_k w_k`` (Burda et al. 2016, arXiv 1509.00519, eq. 8).
    """
    return torch.logsumexp(weights, dim=0) - math.log(len(weights))


def linear_warmup(step: int, warmup_steps: int) -> float:
    """Factor from 0 at step 0 to 1 at ``warmup_steps`` and on (KL annealing, Bowman et al. 2016, arXiv 1511.06349)."""
    return 1.0 if warmup_steps <= 0 else min(1.0, step / warmup_steps)


def soft_bound(x: Tensor, limit: float) -> Tensor:
    """``x`` near 0, never beyond ``+-limit``, and with a gradient everywhere: ``x / sqrt(1 + (x / limit)^2)``.

    The gradient falls as ``(limit / x)^3``, not exponentially as that of tanh, so a scale that was thrown far off
    finds back; a clamp would leave it there.
    """
    return x / torch.hypot(torch.ones_like(x), x / limit)  # whose square does not overflow
