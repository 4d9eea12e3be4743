"""VAEs with known evidence and known true posterior."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from src.models.likelihoods import GaussianLikelihood
from src.models.posteriors import MAX_LOG_VARIANCE
from src.models.vae import VAE

SHAPE, PIXELS, LATENTS, NOISE = (1, 2, 3), 6, 2, 0.3


class LinearPosterior(NamedTuple):
    """The Gaussian ``N(weight x + bias, covariance)`` of images x."""

    weight: Tensor  # [LATENTS, PIXELS]
    bias: Tensor  # [LATENTS]
    covariance: Tensor  # [LATENTS, LATENTS]


def unbounded(log_variance: Tensor) -> Tensor:
    """Return what a head must give for this log-variance."""
    return log_variance / torch.sqrt(1 - (log_variance / MAX_LOG_VARIANCE) ** 2)


class Flat(nn.Flatten):
    """An encoder that passes the pixels on."""

    out_features = PIXELS

    def __init__(self, image_shape, depth):
        super().__init__()


class LinearDecoder(nn.Sequential):
    """The decoder of probabilistic PCA."""

    def __init__(self, latent_dim, image_shape, depth):
        super().__init__(nn.Linear(latent_dim, PIXELS), nn.Unflatten(1, image_shape))


def probabilistic_pca(**options: Any) -> tuple[VAE, MultivariateNormal]:
    """Probabilistic PCA as a VAE whose encoder is the exact posterior, and the exact evidence p(x).

    x = W z + b + noise. With orthogonal columns of W the posterior N(M^-1 W'(x - b) / s^2, M^-1), M = I + W'W / s^2,
    has a diagonal covariance (Tipping & Bishop 1999), so the VAE's posterior family holds it.
    """
    torch.manual_seed(0)
    model = VAE(SHAPE, LATENTS, Flat, LinearDecoder, GaussianLikelihood(NOISE), **options)
    basis = torch.linalg.qr(torch.randn(PIXELS, LATENTS))[0] * torch.tensor([1.5, 0.7])
    offset = torch.randn(PIXELS)
    precision = torch.eye(LATENTS) + basis.T @ basis / NOISE**2
    to_mean = torch.linalg.solve(precision, basis.T) / NOISE**2
    log_variance = -precision.diagonal().log()
    with torch.no_grad():
        model.decoder[0].weight.copy_(basis)
        model.decoder[0].bias.copy_(offset)
        model.posterior_head.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
        model.posterior_head.bias.copy_(torch.cat([-to_mean @ offset, unbounded(log_variance)]))
    return model, MultivariateNormal(offset, basis @ basis.T + NOISE**2 * torch.eye(PIXELS))


def correlated_pca(**options) -> tuple[VAE, MultivariateNormal, LinearPosterior]:
    """Return a linear VAE whose true posterior is correlated, the evidence, and that posterior.

    The head of the model is as it was initialised.
    """
    torch.manual_seed(0)
    basis, offset = torch.randn(PIXELS, LATENTS) * 0.3, torch.randn(PIXELS)  # first: the same for every posterior
    basis[:, 1] += basis[:, 0]
    model = VAE(SHAPE, LATENTS, Flat, LinearDecoder, GaussianLikelihood(NOISE), **options)
    precision = torch.eye(LATENTS) + basis.T @ basis / NOISE**2
    with torch.no_grad():
        model.decoder[0].weight.copy_(basis)
        model.decoder[0].bias.copy_(offset)
    to_mean = torch.linalg.solve(precision, basis.T) / NOISE**2
    evidence = MultivariateNormal(offset, basis @ basis.T + NOISE**2 * torch.eye(PIXELS))
    return model, evidence, LinearPosterior(to_mean, -to_mean @ offset, precision.inverse())
