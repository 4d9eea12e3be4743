"""The plain VAE."""

from torch import Tensor

from src.models.base import BaseVAE
from src.models.objectives import ElboTerms, Inference


class VAE(BaseVAE):
    """``loss = distortion + kl_weight * rate``: the negative ELBO at weight 1 (Kingma & Welling 2014, arXiv 1312.6114).

    At other weights a beta-VAE (Higgins et al. 2017): above 1 fewer nats of rate, below 1 fewer of distortion
    (Alemi et al. 2018, arXiv 1711.00464).
    """

    def objective(self, x: Tensor, inference: Inference, terms: ElboTerms) -> Tensor:
        """Weighted negative ELBO of every image ``[B]``, in nats."""
        return terms.distortion + self.current_kl_weight * terms.rate
