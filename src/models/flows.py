"""Normalizing flows: invertible steps ``z_0 -> z_1 -> ... -> z_T``, and the distribution of z_T.

``log q(z_T) = log q(z_0) - sum_t log |det dz_t / dz_(t-1)|`` (Rezende & Mohamed 2015, arXiv 1505.05770). A step has
parameters for each of B images, or the same for all; D latents.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from src.models.objectives import soft_bound
from src.networks.blocks import WideLinear
from src.system.errors import NotApplicable

OPEN = 2.0  # added to a gate's logit, so that a step begins close to the identity, as a forget gate does
FAR = 1e15  # bound of what inverting a step gives; its square is a number of float32
STEEPEST = 0.99  # bound of the diagonals of a Sylvester step; at 1 it would not be invertible


class Step(Protocol):
    """An invertible function of codes ``[..., B, D]``: another one for each image, or one for all, ``[..., D]``."""

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes that these are mapped to, and the log |det| of the Jacobian, ``[..., B]``."""

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes that are mapped to these, and the log |det| of the step's own Jacobian there.

        Raises:
            NotApplicable: the inverse has no closed form.
        """


class Flow(Distribution):
    """The distribution of ``z_T`` for ``z_0`` drawn from a base; batch and event are those of the base.

    The density of the latest draw is known from drawing it; that of any other code takes the inverse of every step.

    Args:
        base: of z_0, batch ``[B]`` and event ``[D]``.
        steps: applied in this order.
    """

    arg_constraints = {}  # noqa: RUF012 (torch's name and type)
    has_rsample = True

    def __init__(self, base: Distribution, steps: Sequence[Step]) -> None:
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)
        self.base, self.steps = base, steps
        self._drawn: Tensor | None = None
        self._density: Tensor | None = None  # of that draw
        self._differentiable = False

    def rsample(self, sample_shape: torch.Size | Sequence[int] = ()) -> Tensor:
        """Return codes ``[*sample_shape, B, D]``, with gradients to the parameters of base and steps."""
        z = self.base.rsample(torch.Size(sample_shape))
        log_density = self.base.log_prob(z)
        for step in self.steps:
            z, log_det = step(z)
            log_density = log_density - log_det
        self._drawn, self._density, self._differentiable = z, log_density, torch.is_grad_enabled()
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of codes ``[..., B, D]``: ``[..., B]``.

        Raises:
            NotApplicable: they are not the latest draw, and a step has no inverse.
        """
        if value is self._drawn and (self._differentiable or not torch.is_grad_enabled()):
            return self._density
        log_density: Tensor | float = 0.0
        for step in reversed(self.steps):
            value, log_det = step.inverse(value)
            log_density = log_density - log_det
        return self.base.log_prob(value) + log_density


# ---- inverse autoregressive flow ------------------------------------------------------------------------------------


class MaskedLinear(WideLinear):
    """A linear layer without the weights from units of a higher degree to those of a lower one.

    Args:
        inputs: degree of each input.
        outputs: degree of each output.
        strict: leave out weights between equal degrees too.
    """

    def __init__(self, inputs: Tensor, outputs: Tensor, *, strict: bool = False) -> None:
        super().__init__(len(inputs), len(outputs))
        mask = outputs[:, None] > inputs if strict else outputs[:, None] >= inputs
        self.register_buffer("mask", mask.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., inputs]`` to ``[..., outputs]``."""
        return F.linear(x, self.weight * self.mask, self.bias)


class MADE(nn.Module):
    """A network of two hidden layers whose outputs for a latent see only the latents before it, and a context.

    Germain et al. 2015, arXiv 1502.03509. A hidden unit of degree k sees the first k latents; those of degree 0 see
    the context alone, so that it reaches the outputs of the first latent too.

    Args:
        latent_dim: latents D.
        hidden: units of each hidden layer.
        backwards: the last latent comes first.
    """

    def __init__(self, latent_dim: int, hidden: int, *, backwards: bool = False) -> None:
        super().__init__()
        latents, units = torch.arange(1, latent_dim + 1), torch.arange(hidden) * latent_dim // hidden
        self.order = list(range(latent_dim))
        if backwards:
            latents, self.order = latents.flip(0), self.order[::-1]
        self.first = MaskedLinear(latents, units)
        self.second = MaskedLinear(units, units)
        self.last = MaskedLinear(units, latents.repeat(2), strict=True)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map codes ``[..., B, D]`` and contexts ``[B, hidden]`` to two numbers a latent, each ``[..., B, D]``."""
        units = self.second(F.relu(self.first(z) + context))
        mean, logit = self.last(F.relu(units)).chunk(2, dim=-1)
        return mean, logit


class AutoregressiveStep(NamedTuple):
    """``z' = sigma z + (1 - sigma) m``, with m and sigma of each latent computed from the latents before it.

    Kingma et al. 2016, arXiv 1606.04934: the Jacobian is triangular, and log |det| the sum of the log sigma. The
    sigmoid keeps sigma below 1, which is stable. Drawing takes one pass through the network, the inverse D.
    """

    network: MADE
    context: Tensor  # [B, hidden], of the images

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        mean, logit = self.network(z, self.context)
        logit = logit + OPEN
        return torch.sigmoid(logit) * z + torch.sigmoid(-logit) * mean, F.logsigmoid(logit).sum(-1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        before, log_det = torch.zeros_like(z), z.new_zeros(z.shape[:-1])
        place = torch.arange(z.shape[-1], device=z.device)
        for latent in self.network.order:
            mean, logit = self.network(before, self.context)
            logit = logit + OPEN
            # Far from its own draws a flow expands code after code beyond float32, to infinities less infinities.
            found = ((z - torch.sigmoid(-logit) * mean) / torch.sigmoid(logit)).clamp(-FAR, FAR)
            before = torch.where(place == latent, found, before)  # the others may be anything as yet
            log_det = log_det + F.logsigmoid(logit[..., latent])
        return before, log_det


# ---- Sylvester flow -------------------------------------------------------------------------------------------------


class SylvesterStep(NamedTuple):
    """``z' = z + Q R tanh(S Q' z + b)`` with M orthonormal directions Q and upper triangular R and S.

    van den Berg et al. 2018, arXiv 1803.05649: ``log |det| = sum_i log(1 + tanh'(.)_i R_ii S_ii)``, where
    ``|R_ii S_ii| < 1`` keeps every factor positive.
    """

    directions: Tensor  # Q [B, D, M]
    outer: Tensor  # R [B, M, M]
    inner: Tensor  # S [B, M, M]
    offset: Tensor  # b [B, M]

    @staticmethod
    def sizes(latent_dim: int, rank: int) -> list[int]:
        """Return how many numbers describe the step of an image: for Q, R and S together, the diagonal of S, b."""
        return [latent_dim * rank, rank**2, rank, rank]

    @classmethod
    def of(cls, raw: Tensor, latent_dim: int, rank: int) -> "SylvesterStep":
        """Return the step of any numbers ``[B, sum of sizes]``; that of zeros is the identity."""
        vectors, both, diagonal, offset = raw.split(cls.sizes(latent_dim, rank), dim=-1)
        both = both.unflatten(-1, (rank, rank))
        outer, inner = (
            triangle.triu(1) + torch.diag_embed(soft_bound(own, STEEPEST))
            for triangle, own in ((both, both.diagonal(dim1=-2, dim2=-1)), (both.mT, diagonal))
        )
        return cls(orthonormal(vectors.unflatten(-1, (latent_dim, rank))), outer, inner, offset)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.einsum("...dm,...d->...m", self.directions, z)
        bent = torch.tanh(torch.einsum("...ij,...j->...i", self.inner, inside) + self.offset)
        moved = torch.einsum("...ij,...j->...i", self.outer, bent)
        slopes = self.outer.diagonal(dim1=-2, dim2=-1) * self.inner.diagonal(dim1=-2, dim2=-1)
        log_det = torch.log1p((1 - bent**2) * slopes).sum(-1)
        return z + torch.einsum("...dm,...m->...d", self.directions, moved), log_det

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        raise NotApplicable(
            "a Sylvester flow has no inverse in closed form: it knows the density of its latest draw alone, and with "
            "gradients only if it was drawn with gradients"
        )


def orthonormal(raw: Tensor) -> Tensor:
    """Return M orthonormal columns, ``[..., D, M]``, for any numbers of that shape.

    They are the first columns of a product of M reflections ``I - 2 v v' / |v|^2`` with ``v_i = e_i + raw_i``, computed
    at once as ``I - V T V'`` with triangular T (Joffrain et al. 2006).

    >>> columns = orthonormal(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    >>> torch.allclose(columns.mT @ columns, torch.eye(3), atol=1e-6)
    True
    """
    rank = raw.shape[-1]
    start = torch.eye(*raw.shape[-2:], dtype=raw.dtype, device=raw.device)
    v = F.normalize(start + raw, dim=-2)
    half = 0.5 * torch.eye(rank, dtype=raw.dtype, device=raw.device)
    inverse = (v.mT @ v).triu(1) + half  # of T
    return start - v @ torch.linalg.solve_triangular(inverse, v[..., :rank, :].mT, upper=True)
