"""Priors p(z) over latent codes, as modules that return ``torch.distributions`` objects."""

import torch
from torch import nn
from torch.distributions import Independent, Normal


class StandardNormal(nn.Module):
    """The prior ``N(0, I)`` in ``latent_dim`` dimensions: no batch shape, event ``[latent_dim]``.

    >>> prior = StandardNormal(2)()
    >>> prior.batch_shape, prior.event_shape, prior.log_prob(torch.zeros(2))  # -log(2 pi)
    (torch.Size([]), torch.Size([2]), tensor(-1.8379))
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> Independent:
        """Return the prior, on the device of the module."""
        return Independent(Normal(self.loc, self.scale, validate_args=False), 1, validate_args=False)
