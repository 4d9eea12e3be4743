"""The losses that weigh posterior samples by their importance: IWAE, MIWAE, PIWAE and CIWAE."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from src.models.losses import Loss
from src.models.objectives import ElboTerms, Inference, is_gaussian, log_weights, mean_bound
from src.system.errors import UserError
from src.system.keys import require

if TYPE_CHECKING:
    from src.models.base import BaseVAE


class ImportanceWeighted(Loss):
    """The negative of importance-weighted bounds on log p(x), of the model's ``num_samples`` posterior samples K.

    ``bounds`` M of K / M samples each, whose mean is the loss: one is the IWAE (Burda et al. 2016, arXiv 1509.00519,
    eq. 8), several are the MIWAE (Rainforth et al. 2018, arXiv 1802.04537, eq. 9); K bounds of one sample are the ELBO.
    With ``elbo_share`` b it is the CIWAE, ``b ELBO + (1 - b) IWAE`` (eq. 12). With ``decoder_bounds`` it is the PIWAE:
    the encoder follows the gradient of one number of bounds, decoder, likelihood and prior that of another (eq. 11),
    at the price of a second pass through the decoder; the loss is the decoder's. (A prior that is made of the encoder's
    output passes the decoder's gradient on to it. Dropout draws anew in the second pass.)

    The encoder's gradient of an IWAE drowns in noise as K grows. ``gradient=stl`` leaves out the score of log q, which
    is zero on average for K = 1 (Roeder et al. 2017, arXiv 1703.09194) and biases the gradient for more; ``dreg``
    weighs the rest by the squares of the normalised weights, which is unbiased (Tucker et al. 2019, arXiv 1810.04152,
    eq. 8).
    Both vanish for every sample where q is the true posterior, and need a Gaussian one. The value is the bound,
    whichever trains.

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
        self.decoder_bounds = None if decoder_bounds == bounds else decoder_bounds  # one pass serves both
        self.elbo_share = elbo_share
        self.gradient = gradient
        if elbo_share:
            self.bound = "ciwae"
        elif self.decoder_bounds is not None:
            self.bound = "piwae"
        else:
            self.bound = "iwae" if bounds == 1 else "miwae"

    def check(self, model: "BaseVAE") -> None:
        """Check also that the samples can be shared out among the bounds, and that the gradient suits the posterior."""
        super().check(model)
        posterior = model.example_posterior()
        if self.gradient != "plain" and not (is_gaussian(posterior) or isinstance(posterior, MultivariateNormal)):
            # A flow keeps the density of its draw, which the hook on the code would miss; a mixture takes its
            # components in turn, so its samples depend on each other; several groups depend on the codes above.
            raise UserError(
                f"model.loss.gradient={self.gradient} needs a Gaussian posterior: choose model.loss.gradient=plain, or "
                "posterior@model.posterior=gaussian or full_gaussian"
            )
        for name in ("bounds", "decoder_bounds"):
            if (number := getattr(self, name)) and model.num_samples % number:
                raise UserError(f"model.loss.{name}={number} must divide model.num_samples={model.num_samples}")

    def forward(
        self, model: "BaseVAE", x: Tensor, inference: Inference, terms: ElboTerms, kl_weight: float | Tensor
    ) -> Tensor:
        """Return the negative bound of every image ``[B]``, in nats."""
        weights = log_weights(x, inference)
        value = self._share(terms.elbo, mean_bound(weights, self.decoder_bounds or self.bounds))
        if not self.training or (self.gradient == "plain" and self.decoder_bounds is None):
            return -value.float()
        return -(value.detach() + _zero(self._surrogate(model, x, inference, weights))).float()

    def _surrogate(self, model: "BaseVAE", x: Tensor, inference: Inference, weights: Tensor) -> Tensor:
        """Return a number for every image ``[B]`` whose gradient is that of the bound, or takes its place."""
        inside = self._derivative(weights, self.bounds)
        if self.gradient != "plain":
            ((posterior, _, z),) = inference.latents
            # Cancels the gradient through the parameters of q: only that through z is left.
            weights = weights + _zero(posterior.log_prob(z.detach()).double())
            if self.gradient == "dreg" and z.requires_grad:
                squared = self._share(1 / len(weights), self.bounds * _shares(weights, self.bounds) ** 2)
                factor = torch.where(inside > 0, squared / inside, 0.0).to(z.dtype)
                z.register_hook(lambda gradient: gradient * factor.reshape(factor.shape + (1,) * (z.dim() - 2)))
        surrogate = (inside * weights).sum(0)
        if self.decoder_bounds is not None:
            # A second pass, in which no code leads to the encoder, makes up the decoder's difference.
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
