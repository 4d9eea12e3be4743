"""The base of every VAE: inference, generation, and the loss that a variant states."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from src.data.batches import Batch
from src.data.pixels import Pixels
from src.models.likelihoods import Likelihood
from src.models.objectives import ElboTerms, Inference, elbo_terms, linear_warmup, soft_bound
from src.models.priors import StandardNormal
from src.networks.blocks import WideLinear
from src.system.keys import require

MAX_LOG_VARIANCE = 12.0  # posterior standard deviations stay within exp(+-6)


class Recipe(Protocol):
    """How a model is trained; :class:`src.training.recipe.Recipe` implements it."""

    def check(self, trainer: L.Trainer, model: "BaseVAE") -> None:
        """Raise a UserError if the trainer cannot train the model."""

    def begin(self, trainer: L.Trainer) -> None:
        """Prepare the optimizer's state that a resumed training has read."""

    def optimizers(self, model: "BaseVAE") -> Any:
        """Return what Lightning's ``configure_optimizers`` does."""

    def clip(self, model: "BaseVAE", limit: float | None, algorithm: str | None) -> None:
        """Clip the gradients."""


class BaseVAE(L.LightningModule, ABC):
    """A variational autoencoder with a diagonal Gaussian posterior and a standard normal prior.

    ``log p(x) >= E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z))`` (Kingma & Welling 2014, arXiv 1312.6114;
    Rezende et al. 2014, arXiv 1401.4082): the encoder gives q(z|x), the decoder and the likelihood give p(x|z).
    A variant states its :meth:`objective`; it may replace :meth:`infer` and :meth:`generate`. Everything that is
    logged is in nats per image: summed over pixels, averaged over images.

    Args:
        image_shape: channels, height and width ``(C, H, W)`` of the images.
        latent_dim: latent dimensions D.
        encoder: called with ``image_shape`` and ``depth``; a module ``[B, C, H, W] -> [B, out_features]``.
        decoder: called with ``latent_dim``, ``image_shape`` and ``depth``; a module ``[B, D] -> [B, C, H, W]``.
        likelihood: makes p(x|z) of the decoder's output.
        kl_weight: weight of the rate in the loss (beta-VAE, Higgins et al. 2017); 1 trains on the ELBO.
        kl_warmup_steps: optimizer steps over which that weight rises from 0; 0 for none.
        depth: convolutions of each stage of both networks, or stacked LSTM layers.
        recipe: how the model is trained; a model that is only used needs none.

    Raises:
        UserError: a value is impossible for any VAE, or the networks cannot process images of this size.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        likelihood: Likelihood,
        kl_weight: float = 1.0,
        kl_warmup_steps: int = 0,
        depth: int = 1,
        recipe: Recipe | None = None,
    ) -> None:
        super().__init__()
        require("model", latent_dim=latent_dim, depth=depth, kl_weight=kl_weight, kl_warmup_steps=kl_warmup_steps)
        channels, height, width = image_shape
        self.image_shape = tuple(image_shape)
        self.latent_dim = latent_dim
        self.kl_weight = kl_weight
        self.kl_warmup_steps = kl_warmup_steps
        self.likelihood = likelihood
        self.prior = StandardNormal(latent_dim)
        self.encoder = encoder(image_shape=self.image_shape, depth=depth)
        self.posterior_head = WideLinear(self.encoder.out_features, 2 * latent_dim)
        self.decoder = decoder(
            latent_dim=latent_dim,
            image_shape=(channels * likelihood.parameters_per_pixel, height, width),
            depth=depth,
        )
        self.recipe = recipe
        # The latest training batch's mean loss, distortion and rate, detached; the guard adds the gradient's norm.
        self.step_terms = torch.zeros(3)
        self.step_grad_norm: Tensor | None = None
        # loss_and_rows as src.training.compilation has compiled it, for training only.
        self.compiled: Callable[..., tuple[Tensor, Tensor]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the name of the current hook, which Lightning sets at each of them, bypasses nn.Module."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # ---- the model -------------------------------------------------------------------------------------------

    def posterior(self, x: Tensor) -> Independent:
        """Return q(z|x) of images ``[B, C, H, W]``: batch ``[B]``, event ``[D]``; the head computes in float32."""
        features = self.encoder(x)
        with torch.autocast(x.device.type, enabled=False):
            mean, log_variance = self.posterior_head(features.float()).chunk(2, dim=-1)
            scale = torch.exp(0.5 * soft_bound(log_variance, MAX_LOG_VARIANCE))
            return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)

    def reparameterize(self, posterior: Independent, num_samples: int = 1) -> Tensor:
        """Sample ``z = mean + scale * noise``, ``[K, B, D]``, with gradients to the posterior's parameters."""
        return posterior.rsample((num_samples,))

    def decode(self, z: Tensor) -> Distribution:
        """Return p(x|z) of codes ``[..., D]``: batch ``[...]``, event ``[C, H, W]``; the likelihood is in float32."""
        raw = self.decoder(z.flatten(0, -2))
        with torch.autocast(z.device.type, enabled=False):
            return self.likelihood(raw.float().unflatten(0, z.shape[:-1]))

    def infer(self, x: Tensor, num_samples: int = 1) -> Inference:
        """Return the posterior of images ``[B, C, H, W]``, K samples of it, and the likelihood under each sample."""
        posterior = self.posterior(x)
        z = self.reparameterize(posterior, num_samples)
        return Inference(posterior, z, self.decode(z))

    def generate(self, num_images: int) -> Distribution:
        """Draw ``num_images`` codes from the prior and return p(x|z) of each."""
        return self.decode(self.prior().sample((num_images,)))

    @abstractmethod
    def objective(self, x: Tensor, inference: Inference, terms: ElboTerms, kl_weight: float | Tensor) -> Tensor:
        """Return the loss of every image ``[B]``, in nats; ``terms`` are the distortion and rate of ``inference``.

        The KL weight of the step is an argument, so that a compiled step does not depend on the step's number.
        """

    @property
    def current_kl_weight(self) -> float:
        """Return the KL weight at this optimizer step: a function of the step alone, so a resumed run continues it.

        In evaluation it is the final weight, so that losses of different epochs are comparable.
        """
        return self.kl_weight * (linear_warmup(self.global_step, self.kl_warmup_steps) if self.training else 1)

    def metric_names(self, pixels: Pixels) -> dict[str, str]:
        """Return the names under which ``elbo`` and ``distortion`` are shown: a pseudo-likelihood adds ``pseudo-``."""
        prefix = "pseudo-" if self.likelihood.is_pseudo(pixels) else ""
        return {name: f"{prefix}{name}" for name in ("elbo", "distortion")}

    # ---- the loops -------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        self.recipe.check(self.trainer, self)

    def on_train_start(self) -> None:
        self.recipe.begin(self.trainer)

    def loss_and_rows(self, x: Tensor, kl_weight: float | Tensor, moments: bool = False) -> tuple[Tensor, Tensor]:
        """Return the mean loss of images ``[B, C, H, W]``, and a row of numbers per image that the callbacks average.

        A row is loss, distortion, rate, the rate of each latent and, with ``moments``, its posterior mean and that
        squared. A variance over images is meaningless while the weights change, so training does without.
        """
        inference = self.infer(x)
        with torch.autocast(x.device.type, enabled=False):
            terms = elbo_terms(x, inference, self.prior())
            loss = self.objective(x, inference, terms, kl_weight)
        values = [loss[:, None], terms.distortion[:, None], terms.rate[:, None], terms.rate_per_latent]
        if moments:
            values += [inference.posterior.mean, inference.posterior.mean**2]
        return loss.mean(), torch.cat([value.detach() for value in values], dim=1)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the mean ``loss`` of the batch and the ``rows`` of its images."""
        loss_and_rows = self.compiled or type(self).loss_and_rows
        loss, rows = loss_and_rows(self, batch.x, self.current_kl_weight)
        self.step_terms, self.step_grad_norm = rows[:, :3].mean(0), None
        return {"loss": loss, "rows": rows}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the ``rows`` of the images: of one posterior sample each, in float32 whatever trains."""
        with in_float32(batch.x.device.type):
            return {"rows": self.loss_and_rows(batch.x, self.current_kl_weight, moments=True)[1]}

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return self.recipe.optimizers(self)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        self.recipe.clip(self, gradient_clip_val, gradient_clip_algorithm)


@contextlib.contextmanager
def in_float32(device_type: str) -> Iterator[None]:
    """Turn off autocast and, on a GPU, TF32, in which convolutions keep only 10 bits of each factor's mantissa."""
    convolutions = torch.backends.cudnn
    before = convolutions.allow_tf32
    convolutions.allow_tf32 = False
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        convolutions.allow_tf32 = before
