"""What a VAE minimizes: modules from an inference to the loss of every image, in nats.

A loss is called with the model, the images ``x``, the :class:`~src.models.objectives.Inference`, its
:class:`~src.models.objectives.ElboTerms`, the KL weight of the step, and the numbers of its own
:meth:`~Loss.schedule`. What depends on the step is an argument, so that a compiled step does not depend on its number.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor, nn

from src.models.autoencoder import FittedGaussian
from src.models.objectives import ElboTerms, Inference, rising
from src.system.errors import UserError
from src.system.keys import require

if TYPE_CHECKING:
    from src.models.base import BaseVAE


class Loss(nn.Module, ABC):
    """A loss of every image; it is in training mode while the model is.

    Attributes:
        bound: the name under which ``-loss``, a lower bound on log p(x), is logged; None where the loss is no bound, or
            is the ELBO.
        of_all_samples: whether its value, not only its gradient, depends on the number of posterior samples, so that
            evaluation takes as many as training.
        needs_density: whether it needs a posterior and a prior that have one.
        weighs_rate: whether the KL weight is part of it.
        follows_codes: whether it lets a :class:`FittedGaussian` follow them.
    """

    bound: str | None = None
    of_all_samples = False
    needs_density = True
    weighs_rate = True
    follows_codes = False

    def check(self, model: "BaseVAE") -> None:
        """Raise a UserError unless the model can be trained by this loss."""
        if self.needs_density and not model.has_elbo:
            raise UserError("the codes of this model are points, without a density: choose loss=reconstruction")
        if not self.weighs_rate and (model.kl_weight != 1 or model.kl_warmup_steps or model.kl_cycle_steps):
            raise UserError(
                f"{type(self).__name__} takes no KL weight: leave model.kl_weight=1 model.kl_warmup_steps=0 "
                "model.kl_cycle_steps=0, or choose loss=elbo"
            )
        cycle, rise = model.kl_cycle_steps, model.kl_warmup_steps
        if cycle and not 0 < rise <= cycle:
            raise UserError(
                f"model.kl_cycle_steps={cycle} is how often the KL weight rises anew: let it rise over "
                f"model.kl_warmup_steps of 1 to {cycle} steps, not {rise}"
            )
        if isinstance(model.latent_prior, FittedGaussian) and not self.follows_codes:
            raise UserError("prior@model.prior=fitted_gaussian follows codes under loss=reconstruction alone")

    def schedule(self, step: int) -> tuple[float, ...]:
        """Return the numbers that the loss takes of an optimizer step."""
        return ()

    def of_split(self, loss: float, distortion: float, rate: float, kl_weight: float) -> float:
        """Return the loss of a split from the means over its images, ``loss`` being that of their losses."""
        return loss

    @abstractmethod
    def forward(
        self, model: "BaseVAE", x: Tensor, inference: Inference, terms: ElboTerms, kl_weight: float | Tensor
    ) -> Tensor:
        """Return the loss of every image ``[B]``, in nats."""


class Elbo(Loss):
    """``distortion + kl_weight * rate``: the negative ELBO at weight 1 (Kingma & Welling 2014, arXiv 1312.6114).

    With another weight it is that of a beta-VAE (Higgins et al. 2017): a weight above 1 trades rate for distortion, one
    below 1 distortion for rate (Alemi et al. 2018, arXiv 1711.00464).
    """

    def forward(
        self, model: "BaseVAE", x: Tensor, inference: Inference, terms: ElboTerms, kl_weight: float | Tensor
    ) -> Tensor:
        """Return the weighted negative ELBO of every image ``[B]``, in nats."""
        return terms.distortion + kl_weight * terms.rate


class FreeBits(Loss):
    """``distortion + kl_weight * sum_d max(free_nats, rate_d)`` (Kingma et al. 2016, arXiv 1606.04934, eq. 15).

    ``rate_d`` is the mean over the batch of a part of the rate: of a latent where posterior and prior factorize, else
    of a group of latents. It is pressed no further than ``free_nats``, so a latent need not be given up while the
    decoder cannot use it yet. Evaluation has no such floor.

    Args:
        free_nats: of each part, in nats; at 0 this is :class:`Elbo`.
    """

    def __init__(self, free_nats: float) -> None:
        super().__init__()
        require("model.loss", free_nats=free_nats)
        self.free_nats = free_nats

    def forward(
        self, model: "BaseVAE", x: Tensor, inference: Inference, terms: ElboTerms, kl_weight: float | Tensor
    ) -> Tensor:
        """Return the loss of every image ``[B]``, in nats; in training the images of the batch share one rate."""
        if not self.training or self.free_nats == 0:
            return terms.distortion + kl_weight * terms.rate
        return terms.distortion + kl_weight * terms.rates.mean(0).clamp(min=self.free_nats).sum()


class Capacity(Loss):
    """``distortion + kl_weight * |rate - C|``, the rate being the mean over the batch (Burgess et al. 2018).

    C rises from 0 to ``capacity``, so that the latents that save most distortion come first (arXiv 1804.03599, eq. 8).
    In evaluation it is at its end, so that losses of different epochs are comparable. With C = 0 this is :class:`Elbo`
    on the batch.

    Args:
        capacity: C at the end, in nats.
        steps: optimizer steps over which C rises from 0; 0 for at once.
    """

    def __init__(self, capacity: float, steps: int) -> None:
        super().__init__()
        require("model.loss", capacity=capacity, steps=steps)
        self.capacity = capacity
        self.steps = steps

    def schedule(self, step: int) -> tuple[float, ...]:
        """Return C at an optimizer step, in nats."""
        return (self.capacity * (rising(step, self.steps) if self.training else 1.0),)

    def of_split(self, loss: float, distortion: float, rate: float, kl_weight: float) -> float:
        """Return the loss of a split, with the mean rate of all its images: a function of no batch."""
        return distortion + kl_weight * abs(rate - self.capacity)

    def forward(
        self,
        model: "BaseVAE",
        x: Tensor,
        inference: Inference,
        terms: ElboTerms,
        kl_weight: float | Tensor,
        capacity: float | Tensor = 0.0,
    ) -> Tensor:
        """Return the loss of every image ``[B]``, in nats; the images of the batch share one rate."""
        return terms.distortion + kl_weight * (terms.rate.mean() - capacity).abs()


class Reconstruction(Loss):
    """The distortion alone, the loss of an autoencoder: it bounds nothing, and presses the codes to no prior.

    Codes are points, and the prior, a Gaussian fitted to them, follows them.
    """

    needs_density = weighs_rate = False
    follows_codes = True

    def check(self, model: "BaseVAE") -> None:
        """Check also that codes are points, that there is one sample of each, and that the prior follows them."""
        super().check(model)
        if model.has_elbo:
            raise UserError(
                "loss=reconstruction is that of points: leave posterior@model.posterior=point (loss=elbo "
                "model.kl_weight=0 leaves the rate out of a VAE's loss)"
            )
        if not isinstance(model.latent_prior, FittedGaussian):
            raise UserError("loss=reconstruction trains no prior: leave prior@model.prior=fitted_gaussian")
        if model.num_samples > 1:
            raise UserError(f"model.num_samples={model.num_samples}: all samples of a point are one: leave 1")

    def forward(
        self, model: "BaseVAE", x: Tensor, inference: Inference, terms: ElboTerms, kl_weight: float | Tensor
    ) -> Tensor:
        """Return the distortion of every image ``[B]``, in nats."""
        if self.training:
            model.latent_prior.follow(inference.latents[0].z.flatten(0, 1))
        return terms.distortion
