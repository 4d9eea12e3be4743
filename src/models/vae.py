"""The VAE of Kingma & Welling: one group of latents."""

from collections.abc import Callable

from torch import Tensor

from src.models.base import BaseVAE
from src.models.objectives import Latent


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
