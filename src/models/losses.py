"""What a VAE minimizes: modules from an inference to the loss of every image, in nats.

A loss is called with the model, the images ``x``, the :class:`~src.models.objectives.Inference`, its
:class:`~src.models.objectives.ElboTerms`, the KL weight of the step, and the numbers of its own
:meth:`~Loss.schedule`. What depends on the step is an argument, so that a compiled step does not depend on its number.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from src.models.autoencoder import FittedGaussian
from src.models.flows import Flow
from src.models.objectives import ElboTerms, Inference, log_weights, mean_bound, rising
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
    """

    bound: str | None = None
    of_all_samples = False
    needs_density = True
    weighs_rate = True

    def check(self, model: "BaseVAE") -> None:
        """Raise a UserError unless the model can be trained by this loss."""
        if self.needs_density and not model.has_elbo:
            raise UserError("the codes of this model are points, without a density: choose loss=reconstruction")
        if not self.weighs_rate and (model.kl_weight != 1 or model.kl_warmup_steps or model.kl_cycle_steps):
            raise UserError(
                f"{type(self).__name__} takes no KL weight: leave model.kl_weight=1 model.kl_warmup_steps=0 "
                "model.kl_cycle_steps=0, or choose loss=elbo"
            )

    def schedule(self, step: int) -> tuple[float, ...]:
        """Return the numbers that the loss takes of an optimizer step."""
        return ()

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

    A prior that is a Gaussian fitted to the codes follows them.
    """

    needs_density = weighs_rate = False

    def forward(
        self, model: "BaseVAE", x: Tensor, inference: Inference, terms: ElboTerms, kl_weight: float | Tensor
    ) -> Tensor:
        """Return the distortion of every image ``[B]``, in nats."""
        if self.training and isinstance(model.latent_prior, FittedGaussian):
            model.latent_prior.follow(inference.latents[0].z.flatten(0, 1))
        return terms.distortion


class ImportanceWeighted(Loss):
    """The negative of importance-weighted bounds on log p(x), of the model's ``num_samples`` posterior samples K.

    ``bounds`` M of K / M samples each, whose mean is the loss: one is the IWAE (Burda et al. 2016, arXiv 1509.00519,
    eq. 8), several are the MIWAE (Rainforth et al. 2018, arXiv 1802.04537, eq. 9); K bounds of one sample are the ELBO.
    With ``elbo_share`` b it is the CIWAE, ``b ELBO + (1 - b) IWAE`` (eq. 12). With ``decoder_bounds`` it is the PIWAE:
    the encoder follows the gradient of one number of bounds, decoder, likelihood and prior that of another (eq. 11),
    at the price of a second pass through the decoder; the loss is the decoder's.

    The encoder's gradient of an IWAE drowns in noise as K grows. ``gradient=stl`` leaves out the score of log q, which
    is zero on average for K = 1 (Roeder et al. 2017, arXiv 1703.09194) and biases the gradient for more; ``dreg``
    weighs the rest by the squares of the normalised weights, which is unbiased (Tucker et al. 2019, arXiv 1810.04152,
    eq. 8).
    Both vanish for every sample where q is the true posterior. The value is the bound, whichever trains.

    Args:
        bounds: M, a divisor of K.
        decoder_bounds: the M of the decoder; None for the same.
        elbo_share: b, from 0 to 1.
        gradient: ``plain``, ``stl`` or ``dreg``: see above.
    """

    of_all_samples = True
    weighs_rate = False  # with a weight inside, importance weights bound nothing

    def __init__(
        self,
        bounds: int = 1,
        decoder_bounds: int | None = None,
        elbo_share: float = 0.0,
        gradient: Literal["plain", "stl", "dreg"] = "plain",
    ) -> None:
        super().__init__()
        require("model.loss", bounds=bounds, decoder_bounds=decoder_bounds, elbo_share=elbo_share, gradient=gradient)
        self.bounds = bounds
        self.decoder_bounds = decoder_bounds
        self.elbo_share = elbo_share
        self.gradient = gradient
        if elbo_share:
            self.bound = "ciwae"
        elif decoder_bounds is not None:
            self.bound = "piwae"
        else:
            self.bound = "iwae" if bounds == 1 else "miwae"

    def check(self, model: "BaseVAE") -> None:
        """Check also that the samples can be shared out among the bounds."""
        super().check(model)
        for name in ("bounds", "decoder_bounds"):
            if (number := getattr(self, name)) and model.num_samples % number:
                raise UserError(f"model.loss.{name}={number} must divide model.num_samples={model.num_samples}")

    def forward(
        self, model: "BaseVAE", x: Tensor, inference: Inference, terms: ElboTerms, kl_weight: float | Tensor
    ) -> Tensor:
        """Return the negative bound of every image ``[B]``, in nats.

        Raises:
            UserError: a gradient other than the plain one is asked of a flow, or of several groups of latents.
        """
        weights = log_weights(x, inference)
        value = self._share(terms.elbo, mean_bound(weights, self.decoder_bounds or self.bounds))
        if not self.training or (self.gradient == "plain" and self.decoder_bounds is None):
            return -value.float()
        return -(value.detach() + _zero(self._surrogate(model, x, inference, weights))).float()

    def _surrogate(self, model: "BaseVAE", x: Tensor, inference: Inference, weights: Tensor) -> Tensor:
        """Return a number for every image ``[B]`` whose gradient is that of the bound, or takes its place."""
        inside = self._derivative(weights, self.bounds)
        if self.gradient != "plain":
            if len(inference.latents) > 1:
                raise UserError(f"model.loss.gradient={self.gradient} is for a single group of latents: choose plain")
            ((posterior, _, z),) = inference.latents
            if isinstance(posterior, Flow):  # the hook below would miss the gradient of log q
                raise UserError(
                    f"model.loss.gradient={self.gradient} needs a density that is a function of the code, and a flow "
                    "keeps the one of its draw: choose plain, or another posterior"
                )
            # Cancels the gradient through the parameters of q: only that through z is left.
            weights = weights + _zero(posterior.log_prob(z.detach()).double())
            if self.gradient == "dreg" and z.requires_grad:
                squared = self._share(1 / len(weights), self.bounds * _shares(weights, self.bounds) ** 2)
                factor = torch.where(inside > 0, squared / inside, 0.0).to(z.dtype)
                z.register_hook(lambda gradient: gradient * factor.reshape(factor.shape + (1,) * (z.dim() - 2)))
        surrogate = (inside * weights).sum(0)
        if self.decoder_bounds is not None:
            # A second pass, in which nothing leads to the encoder, makes up the decoder's difference.
            fixed = tuple(latent._replace(z=latent.z.detach()) for latent in inference.latents)
            again = model.with_likelihood(fixed).likelihood.log_prob(x).double()
            again = again + sum(latent.prior.log_prob(latent.z).double() for latent in fixed)
            surrogate = surrogate + ((self._derivative(weights, self.decoder_bounds) - inside) * again).sum(0)
        return surrogate

    def _derivative(self, weights: Tensor, bounds: int) -> Tensor:
        """Return the derivative of the value by each log weight, ``[K, B]``."""
        return self._share(1 / len(weights), _shares(weights, bounds))

    def _share(self, of_elbo: Tensor | float, of_bounds: Tensor) -> Tensor:
        return self.elbo_share * of_elbo + (1 - self.elbo_share) * of_bounds if self.elbo_share else of_bounds


def _shares(weights: Tensor, bounds: int) -> Tensor:
    """Return the derivative of the mean of several bounds by each log weight: ``[K, B]``, which sum to 1."""
    return weights.detach().unflatten(0, (bounds, -1)).softmax(1).flatten(0, 1) / bounds


def _zero(x: Tensor) -> Tensor:
    """Return zeros that have the gradient of ``x``."""
    return x - x.detach()
