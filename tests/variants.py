"""The smallest prior, hierarchy and penalty of kinds that ``src`` does not hold yet, to prove that the base can."""

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from src.data.training_images import TrainingImages
from src.models.objectives import Inference, Latent
from src.models.vae import VAE

# Overrides that build a small model of each kind.
VARIANTS = {
    "chain": ["model=conv_tiny", "model._target_=tests.variants.Chain"],
    "committed": ["model=conv_tiny", "model._target_=tests.variants.Committed"],
}


class FullStandardNormal(nn.Module):
    """N(0, I) as a Gaussian of full covariance."""

    def __init__(self, latent_dim: int, images: TrainingImages | None = None) -> None:
        super().__init__()
        self.register_buffer("root", torch.eye(latent_dim), persistent=False)

    def forward(self, encode=None, positions=None) -> Distribution:
        return MultivariateNormal(torch.zeros_like(self.root[0]), scale_tril=self.root)


class Chain(VAE):
    """Two groups, z2 -> z1 -> x, of Gaussians: p(z1|z2) = N(A z2, s^2), q(z1|z2, x) linear in z2 and the features."""

    has_codes = False

    def example_posterior(self) -> None:
        return None

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.prior_below = nn.Linear(self.latent_dim, self.latent_dim)
        self.posterior_below = nn.Linear(self.encoder.out_features + self.latent_dim, self.latent_dim)
        self.log_scale_of_prior = nn.Parameter(torch.zeros(self.latent_dim))
        self.log_scale_of_posterior = nn.Parameter(torch.full((self.latent_dim,), -0.5))

    @property
    def rate_parts(self) -> int:
        return 2 * self.latent_dim

    def sampler(self, x: Tensor | None = None, positions: Tensor | None = None):
        top = prior = self.prior()
        if x is not None:
            features = self.encoder(x).float()
            top = self.posterior_head(features)

        def draw(num_samples: int) -> tuple[Latent, ...]:
            z = top.rsample((num_samples,))
            below = posterior = normal(self.prior_below(z), self.log_scale_of_prior)
            if x is not None:
                known = torch.cat([features.expand(num_samples, *features.shape), z], -1)
                posterior = normal(self.posterior_below(known), self.log_scale_of_posterior)
            return Latent(top, prior, z), Latent(posterior, below, posterior.rsample())

        return draw


def normal(mean: Tensor, log_scale: Tensor) -> Distribution:
    """Return a Gaussian of independent latents."""
    return Independent(Normal(mean, log_scale.exp()), 1)


class Committed(VAE):
    """A VAE with a penalty in the loss, of 3 nats for each unit of the first latent's square."""

    def with_likelihood(self, latents: tuple[Latent, ...]) -> Inference:
        return super().with_likelihood(latents)._replace(penalty=3 * (latents[0].z[..., 0] ** 2).mean(0))
