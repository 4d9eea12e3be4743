"""Posteriors q(z|x): modules from an encoder's features to ``torch.distributions`` objects over latent codes."""

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from src.models.objectives import soft_bound
from src.networks.blocks import WideLinear

MAX_LOG_VARIANCE = 12.0  # standard deviations stay within exp(+-6)


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
        mean, log_variance = super().forward(features).chunk(2, dim=-1)
        scale = torch.exp(0.5 * soft_bound(log_variance, MAX_LOG_VARIANCE))
        return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)
