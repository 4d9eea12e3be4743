"""The VAE of Kingma & Welling, and with other KL weights the beta-VAE."""

from torch import Tensor

from src.models.base import BaseVAE
from src.models.objectives import ElboTerms, Inference


class VAE(BaseVAE):
    """``loss = distortion + kl_weight * rate``: the negative ELBO at weight 1 (Kingma & Welling 2014, arXiv 1312.6114).

    With another weight it is a beta-VAE (Higgins et al. 2017): a weight above 1 trades rate for distortion, one below 1
    distortion for rate (Alemi et al. 2018, arXiv 1711.00464).
    """

    def objective(self, x: Tensor, inference: Inference, terms: ElboTerms, kl_weight: float | Tensor) -> Tensor:
        """Return the weighted negative ELBO of every image ``[B]``, in nats."""
        return terms.distortion + kl_weight * terms.rate
