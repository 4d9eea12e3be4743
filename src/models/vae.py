"""The VAE of Kingma & Welling: one group of latents."""

from src.models.base import BaseVAE


class VAE(BaseVAE):
    """A VAE with one group of latents (Kingma & Welling 2014, arXiv 1312.6114).

    Posterior, prior, likelihood and loss are what it is given: with a KL weight above 1 it is a beta-VAE (Higgins et
    al. 2017), with an importance-weighted loss an IWAE (Burda et al. 2016), and so on.
    """
