"""The VAE of Kingma & Welling: one group of latents."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Distribution

from src.models.base import BaseVAE
from src.models.objectives import Latent, analytic_rates, is_gaussian, is_point


class VAE(BaseVAE):
    """A VAE with one group of latents (Kingma & Welling 2014, arXiv 1312.6114).

    Posterior, prior, likelihood and loss are what it is given: with a KL weight above 1 it is a beta-VAE (Higgins et
    al. 2017), with an importance-weighted loss an IWAE (Burda et al. 2016), and so on.
    """

    def sampler(self, x: Tensor | None = None, positions: Tensor | None = None) -> Callable[[int], tuple[Latent, ...]]:
        """Return a function that draws K codes ``[K, B, D]`` from q(z|x), or ``[K, D]`` from p(z) without images."""
        prior = self.prior(positions)
        if x is None:
            return lambda num_samples: (Latent(prior, prior, prior.sample((num_samples,))),)
        posterior = self.posterior(x)
        return lambda num_samples: (Latent(posterior, prior, self.reparameterize(posterior, num_samples)),)

    @cached_property
    def rate_parts(self) -> int:
        """Return how many parts the rate of an image has: see :func:`~src.models.objectives.rates`."""
        with torch.no_grad():
            parts = analytic_rates(self.example_posterior(), self.prior())
        return 1 if parts is None else parts.shape[-1]

    @cached_property
    def has_codes(self) -> bool:
        """Return whether an image has a code: the mean of a Gaussian of independent latents, or a point."""
        posterior = self.example_posterior()
        return is_point(posterior) or is_gaussian(posterior)

    @cached_property
    def has_elbo(self) -> bool:
        """Return whether the code of an image has a density: without one there is no rate and no bound on log p(x)."""
        return not is_point(self.example_posterior())

    @torch.no_grad()
    def example_posterior(self) -> Distribution:
        """Return the posterior of features that are 0, batch ``[1]``."""
        training = self.posterior_head.training
        with torch.autocast(self.device.type, enabled=False):
            posterior = self.posterior_head.eval()(torch.zeros(1, self._features, device=self.device))
        self.posterior_head.train(training)
        return posterior

    def embed(self, x: Tensor) -> Distribution:
        """Return q(z_d|x) of each latent of images ``[B, C, H, W]``: batch ``[B, D]``. Its mean is the code.

        Raises:
            NotApplicable: the posterior is not of that kind.
        """
        self.check_codes()
        return self.posterior(x).base_dist
