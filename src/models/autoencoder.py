"""What turns a VAE into a plain autoencoder: codes that are points, and a Gaussian that is fitted to them.

``loss=reconstruction`` chooses both. There is no density of codes, hence no rate and no ELBO.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, constraints

from src.data.training_images import TrainingImages
from src.networks.blocks import WideLinear

SLOWEST = 0.01  # share of a new batch in the moments of the codes, once there were many
JITTER = 1e-6  # of the sum of the variances, added to each: codes in a plane have a density too; well above rounding
SMALLEST = 1e-8  # added too, for codes in a point


class Point(Distribution):
    """Numbers that are certain: a sample is the mean. There is no density.

    Args:
        value: of any shape, which is the batch shape.
    """

    support = constraints.real
    has_rsample = True

    def __init__(self, value: Tensor) -> None:
        self.value = value
        super().__init__(value.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Return the numbers."""
        return self.value

    @property
    def variance(self) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(self.value)

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> "Point":
        """Return the numbers in a larger batch shape."""
        return Point(self.value.expand(batch_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return the numbers, as often as ``sample_shape`` says."""
        return self.value.expand(*sample_shape, *self.value.shape)


class PointPosterior(WideLinear):
    """Model the code of an image as a point, a linear function of the encoder's features.

    Args:
        features: of the encoder.
        latent_dim: latent dimensions D.
    """

    def __init__(self, features: int, latent_dim: int) -> None:
        super().__init__(features, latent_dim)

    def forward(self, features: Tensor) -> Independent:
        """Return the codes of images with these features ``[B, features]``: batch ``[B]``, event ``[latent_dim]``."""
        return Independent(Point(super().forward(features)), 1, validate_args=False)


class FittedGaussian(nn.Module):
    """A Gaussian with mean and covariance of the training images' codes, from which an autoencoder draws new codes.

    Both are means over the batches, in which late ones count more, as in batch norm: the codes move in training. The
    Gaussian has no gradient. Before training it is N(0, I).

    Args:
        latent_dim: latent dimensions D.
        images: see :mod:`src.models.priors`; not used.
    """

    def __init__(self, latent_dim: int, images: TrainingImages | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("covariance", torch.eye(latent_dim))
        self.register_buffer("batches", torch.zeros(()))

    @torch.no_grad()
    def follow(self, codes: Tensor) -> None:
        """Take the moments of a batch of codes ``[B, D]`` into account."""
        codes = codes.float()
        share = torch.clamp(1 / (self.batches + 1), min=SLOWEST)
        mean = torch.lerp(self.mean, codes.mean(0), share)
        # The covariance of a mixture of what was known and the batch, whose means differ.
        known, new = self.mean - mean, codes - mean
        self.covariance.copy_(torch.lerp(self.covariance + known.outer(known), new.T @ new / len(codes), share))
        self.mean.copy_(mean)
        self.batches += 1

    def forward(self, encode: object = None, positions: Tensor | None = None) -> MultivariateNormal:
        """Return the Gaussian: no batch shape, event ``[latent_dim]``."""
        covariance = self.covariance.double()
        jitter = (JITTER * covariance.trace() + SMALLEST).expand(len(covariance)).diag()
        root, _ = torch.linalg.cholesky_ex(covariance + jitter)  # does not wait for the device
        return MultivariateNormal(self.mean, scale_tril=root.to(self.mean.dtype), validate_args=False)
