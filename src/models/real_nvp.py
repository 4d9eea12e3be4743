"""A flow prior: the distribution of noise that an invertible network maps to codes."""

import torch
from torch import Tensor, nn

from src.data.training_images import TrainingImages
from src.models.flows import Flow
from src.models.objectives import soft_bound
from src.models.priors import Encode, StandardNormal
from src.system.errors import UserError
from src.system.keys import require

MAX_LOG_FACTOR = 3.0  # a coupling scales a number by at most exp(+-3)


class AffineCoupling(nn.Module):
    """Scale and shift one half of a code by functions of the other (Dinh et al. 2017, arXiv 1605.08803, eq. 7-9).

    A :class:`~src.models.flows.Step` from noise to codes. Its inverse, which densities take, is
    ``z * exp(s(other half)) + t(other half)``: the Jacobian is triangular, and the log-determinant the sum of s. The
    last layer begins at zero, and with it s and t: the coupling begins as the identity, and its other layers have no
    gradient in the very first step.

    Args:
        latent_dim: D.
        hidden: units of each of two layers.
        second: change the second half of the code, not the first.
    """

    def __init__(self, latent_dim: int, hidden: int, second: bool) -> None:
        super().__init__()
        self.first = latent_dim // 2
        self.second = second
        given, changed = (self.first, latent_dim - self.first)[:: 1 if second else -1]
        last = nn.Linear(hidden, 2 * changed)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(given, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)

    def _parted(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return both halves of numbers ``[..., D]``, and log-factor and shift of the one that changes."""
        first, second = z.tensor_split([self.first], dim=-1)
        log_factor, shift = self.network(first if self.second else second).chunk(2, dim=-1)
        return first, second, soft_bound(log_factor, MAX_LOG_FACTOR), shift

    def _joined(self, first: Tensor, second: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([first, changed] if self.second else [changed, second], -1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the changed numbers ``[..., D]`` and the log-determinant ``[...]`` of the change."""
        first, second, log_factor, shift = self._parted(z)
        changed = ((second if self.second else first) - shift) * (-log_factor).exp()
        return self._joined(first, second, changed), -log_factor.sum(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return what :meth:`forward` maps to ``z``, and the log-determinant of that change there."""
        first, second, log_factor, shift = self._parted(z)
        changed = (second if self.second else first) * log_factor.exp() + shift
        return self._joined(first, second, changed), -log_factor.sum(-1)


class RealNVPPrior(nn.Module):
    """A prior that a chain of affine couplings maps to N(0, I), with which it begins, bit for bit.

    Dinh et al. 2017, arXiv 1605.08803; as the prior of a VAE Xu et al. 2019, arXiv 1905.13452. Couplings change the
    second and the first half of the code in turns.

    Args:
        latent_dim: latent dimensions D, at least 2.
        images: see :mod:`src.models.priors`; not used.
        flows: couplings.
        hidden: units of each of the two hidden layers of a coupling.

    Raises:
        UserError: there are no two halves.
    """

    def __init__(
        self, latent_dim: int, images: TrainingImages | None = None, flows: int = 8, hidden: int = 256
    ) -> None:
        super().__init__()
        require("model.prior", flows=flows, hidden=hidden)
        if latent_dim < 2:
            raise UserError(
                f"model.latent_dim={latent_dim}: a RealNVP prior needs at least 2 latents, one for each half"
            )
        self.noise = StandardNormal(latent_dim)
        self.couplings = nn.ModuleList(AffineCoupling(latent_dim, hidden, second=i % 2 == 0) for i in range(flows))

    def forward(self, encode: Encode | None = None, positions: Tensor | None = None) -> Flow:
        """Return the prior: no batch shape, event ``[D]``."""
        return Flow(self.noise(), self.couplings[::-1])
