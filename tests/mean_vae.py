"""A VAE without noise, for comparing runs in which only the number of processes differs."""

from src.models.vae import VAE


class MeanVAE(VAE):
    """Takes z at the posterior mean."""

    def reparameterize(self, posterior, num_samples=1):
        """The mean, as often as asked."""
        return posterior.mean.expand(num_samples, *posterior.mean.shape)
