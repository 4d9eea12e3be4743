"""The base of every VAE: inference, generation, and the rows of numbers that training and evaluation average."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from src.data.batches import Batch
from src.data.pixels import Pixels
from src.data.training_images import TrainingImages
from src.models.likelihoods import Likelihood
from src.models.losses import Elbo, Loss
from src.models.objectives import Inference, Latent, elbo_terms, rising
from src.models.posteriors import GaussianPosterior
from src.models.priors import StandardNormal
from src.models.trainable import Recipe, Trainable, as_evaluated, in_float32
from src.system.errors import NotApplicable, UserError
from src.system.keys import require

NO_ELBO = "the codes of this model are points: without a density there is no rate, and no bound on log p(x)"
NO_CODES = "the posterior of this model is not a Gaussian of independent latents"


class BaseVAE(Trainable, ABC):
    """A variational autoencoder: a posterior, a prior and a likelihood.

    ``log p(x) >= E_q(z|x)[log p(x|z)] - KL(q(z|x) || p(z))`` (Kingma & Welling 2014, arXiv 1312.6114;
    Rezende et al. 2014, arXiv 1401.4082): the encoder gives q(z|x), the decoder and the likelihood give p(x|z).
    A variant states how codes are drawn, its :meth:`sampler`, and the number of its ``rate_parts``. Everything that is
    logged is in nats per image: summed over pixels, averaged over images.

    Args:
        image_shape: channels, height and width ``(C, H, W)`` of the images.
        latent_dim: latent dimensions D.
        encoder: called with ``image_shape`` and ``depth``; a module ``[B, C, H, W] -> [B, out_features]``.
        decoder: called with ``latent_dim``, ``image_shape`` and ``depth``; a module ``[B, D] -> [B, maps, H, W]`` for
            the ``image_shape`` ``(maps, H, W)``, with as many maps as the likelihood needs for C channels.
        likelihood: makes p(x|z) of the decoder's output.
        kl_weight: weight of the rate in the loss (beta-VAE, Higgins et al. 2017); 1 trains on the ELBO.
        kl_warmup_steps: optimizer steps over which that weight rises from 0; 0 for none.
        kl_cycle_steps: optimizer steps after which it rises from 0 again; 0 for never.
        depth: layers of each stage of both networks, or stacked LSTM layers.
        recipe: how the model is trained; a model that is only used needs none.
        posterior: called with ``features`` (the encoder's ``out_features``) and ``latent_dim``; a module that makes
            q(z|x) of the encoder's output.
        prior: called with ``latent_dim`` and ``images``; a module that returns p(z), see :mod:`src.models.priors`.
        start_at_mean: begin with a decoder whose every image is about the mean training image (Burda et al. 2016).
        images: the training images, for parts that are made of them or begin at them; others never read one.
        num_samples: posterior samples K of each image in a training step; evaluation takes one, unless the loss
            is a function of all.
        loss: what is minimized; None for the negative ELBO, weighted by ``kl_weight``.

    Attributes:
        latent_shape: of the code that the decoder takes.
        has_codes: whether an image has a code, the mean of a Gaussian of independent latents, or a point.
        has_elbo: whether codes have a density: without one there is no rate, and no bound on log p(x).

    Raises:
        UserError: a value is impossible for any VAE, or the networks cannot process images of this size.
    """

    has_codes = False
    has_elbo = True

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        likelihood: Likelihood,
        kl_weight: float = 1.0,
        kl_warmup_steps: int = 0,
        kl_cycle_steps: int = 0,
        depth: int = 1,
        recipe: Recipe | None = None,
        posterior: Callable[..., nn.Module] = GaussianPosterior,
        prior: Callable[..., nn.Module] = StandardNormal,
        num_samples: int = 1,
        loss: Loss | None = None,
        start_at_mean: bool = False,
        images: TrainingImages | None = None,
    ) -> None:
        super().__init__(recipe)
        require("model", latent_dim=latent_dim, depth=depth, kl_weight=kl_weight, kl_warmup_steps=kl_warmup_steps)
        require("model", kl_cycle_steps=kl_cycle_steps, num_samples=num_samples, start_at_mean=start_at_mean)
        channels, height, width = image_shape
        self.image_shape = tuple(image_shape)
        self.latent_dim = latent_dim
        self.latent_shape = (latent_dim,)
        self.num_samples = num_samples
        self.loss = Elbo() if loss is None else loss
        self.kl_weight = kl_weight
        self.kl_warmup_steps = kl_warmup_steps
        self.kl_cycle_steps = kl_cycle_steps
        self.likelihood = likelihood
        self.encoder = encoder(image_shape=self.image_shape, depth=depth)
        self._features = self.encoder.out_features
        self.posterior_head = posterior(features=self._features, latent_dim=latent_dim)
        self.decoder = decoder(
            latent_dim=latent_dim,
            image_shape=(likelihood.outputs(channels), height, width),
            depth=depth,
        )
        self.images = TrainingImages(self.image_shape) if images is None else images
        # Last: networks of one seed are equal under any prior.
        self.latent_prior = prior(latent_dim=latent_dim, images=self.images)
        self._kept_prior: tuple[list[tuple[int, int]], Distribution] | None = None
        if start_at_mean:
            if not hasattr(self.decoder, "start_at"):
                raise UserError("model.start_at_mean=true needs a decoder with a bias for each pixel, as model=mlp has")
            self.decoder.start_at(likelihood.raw_of(self.images.mean))
        self.loss.check(self)
        if hasattr(self.latent_prior, "check"):
            self.latent_prior.check(self.example_posterior())

    # ---- the model -------------------------------------------------------------------------------------------

    def posterior(self, x: Tensor) -> Distribution:
        """Return q(z|x) of images ``[B, C, H, W]``: batch ``[B]``, event ``[D]``; the head computes in float32."""
        features = self.encoder(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.posterior_head(features.float())

    def encode_steadily(self, x: Tensor) -> Distribution:
        """Return q(z|x) as evaluation does, with gradients: no statistics of batch norm move, nothing is dropped."""
        with as_evaluated(self.encoder, self.posterior_head):
            return self.posterior(x)

    def prior(self, positions: Tensor | None = None) -> Distribution:
        """Return p(z): no batch shape, event ``[D]``. It may take long to compute: once for a step.

        In evaluation it is computed once for the weights. In training ``positions`` ``[B]`` are those of the batch's
        images among the training images; a prior that is made of these leaves each out of its own: batch ``[B]``.
        """
        if self.training or torch.is_grad_enabled():
            return self.latent_prior(self.encode_steadily, positions)
        state = [(t.data_ptr(), t._version) for t in (*self.parameters(), *self.buffers())]
        if self._kept_prior is None or self._kept_prior[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._kept_prior = state, self.latent_prior(self.encode_steadily)
        return self._kept_prior[1]

    def train(self, mode: bool = True) -> "BaseVAE":
        """Switch to training or evaluation; either forgets the prior of the last evaluation.

        The version counters of the weights do not tell that they have moved: fused optimizers leave them as they were.
        """
        self._kept_prior = None
        return super().train(mode)

    def reparameterize(self, posterior: Distribution, num_samples: int = 1) -> Tensor:
        """Sample codes, ``[K, B, D]``, with gradients to the posterior's parameters: ``mean + scale * noise``.

        In float32, like the head: a flow passes networks here.
        """
        with torch.autocast(self.device.type, enabled=False):
            return posterior.rsample((num_samples,))

    @abstractmethod
    def sampler(self, x: Tensor | None = None, positions: Tensor | None = None) -> Callable[[int], tuple[Latent, ...]]:
        """Return a function that draws K codes from q(z|x) of each image ``[B, C, H, W]``: groups, top first.

        Without images it draws K codes ``[K, D]`` from p(z). What all draws share, such as the pass through the
        encoder, is computed here, once. For ``positions`` see :meth:`prior`.
        """

    def decode(self, *z: Tensor) -> Distribution:
        """Return p(x|z) of codes ``[..., D]``: batch ``[...]``, event ``[C, H, W]``; the likelihood is in float32.

        Of several groups the image depends on the last one alone, unless a variant replaces this method.
        """
        batch = z[-1].shape[: -len(self.latent_shape)]
        raw = self.decoder(z[-1].flatten(0, len(batch) - 1))
        with torch.autocast(raw.device.type, enabled=False):
            return self.likelihood(raw.float().unflatten(0, batch))

    def infer(self, x: Tensor, num_samples: int = 1, positions: Tensor | None = None) -> Inference:
        """Return K samples of the posterior of images ``[B, C, H, W]``, and the likelihood under each.

        For ``positions`` see :meth:`prior`.
        """
        return self.with_likelihood(self.sampler(x, positions)(num_samples))

    def with_likelihood(self, latents: tuple[Latent, ...]) -> Inference:
        """Return the inference that has drawn these latents."""
        return Inference(latents, self.decode(*(latent.z for latent in latents)))

    def generate(self, num_images: int) -> Distribution:
        """Draw ``num_images`` codes from the prior and return p(x|z) of each."""
        return self.with_likelihood(self.sampler()(num_images)).likelihood

    @property
    @abstractmethod
    def rate_parts(self) -> int:
        """Return how many parts the rate of an image has: see :func:`~src.models.objectives.rates`."""

    def embed(self, x: Tensor) -> Distribution:
        """Return q(z_d|x) of each latent of images ``[B, C, H, W]``: batch ``[B, D]``. Its mean is the code.

        Raises:
            NotApplicable: images have no codes.
        """
        raise NotApplicable(NO_CODES)

    def example_posterior(self) -> Distribution | None:
        """Return a posterior of the kind that images have; None where there are several groups of latents."""
        return None

    def check_elbo(self) -> None:
        """Raise a NotApplicable if the code of an image has no density."""
        if not self.has_elbo:
            raise NotApplicable(NO_ELBO)

    def check_codes(self) -> None:
        """Raise a NotApplicable unless the posterior of an image is a Gaussian of independent latents."""
        if not self.has_codes:
            raise NotApplicable(NO_CODES)

    @property
    def current_kl_weight(self) -> float:
        """Return the KL weight at this optimizer step: a function of the step alone, so a resumed run continues it.

        In evaluation it is the final weight, so that losses of different epochs are comparable.
        """
        if not self.training:
            return self.kl_weight
        return self.kl_weight * rising(self.global_step, self.kl_warmup_steps, self.kl_cycle_steps)

    @property
    def schedule(self) -> tuple[float, ...]:
        """Return the numbers that the loss takes of this optimizer step: the KL weight, then its own."""
        return (self.current_kl_weight, *self.loss.schedule(self.global_step))

    def metric_names(self, pixels: Pixels) -> dict[str, str]:
        """Return the names under which ``elbo`` and ``distortion`` are shown.

        A pseudo-likelihood adds ``pseudo-``, a density of something else than pixels says of what it is.
        """
        prefix = "pseudo-" if self.likelihood.is_pseudo(pixels) else ""
        of = " of features" if pixels is Pixels.FEATURES else ""
        return {name: f"{prefix}{name}{of}" for name in ("elbo", "distortion")}

    def cost_name(self, pixels: Pixels) -> str:
        """Return what the nats that an image costs are called: the negative ELBO, where there is one."""
        names = self.metric_names(pixels)
        return f"−{names['elbo']}" if self.has_elbo else names["distortion"]

    # ---- the loops -------------------------------------------------------------------------------------------

    def loss_and_rows(
        self, x: Tensor, *schedule: float | Tensor, positions: Tensor | None = None, moments: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss of images ``[B, C, H, W]``, and a row of numbers per image that the callbacks average.

        :meth:`row_sizes` says what a row holds. Training takes ``num_samples`` posterior samples of each image,
        evaluation, which asks for ``moments``, one unless the loss is a function of all. For ``positions`` see
        :meth:`prior`, for the numbers of the :attr:`schedule` the loss.
        """
        inference = self.infer(x, 1 if moments and not self.loss.of_all_samples else self.num_samples, positions)
        with torch.autocast(x.device.type, enabled=False):
            terms = elbo_terms(x, inference)
            loss = self.loss(self, x, inference, terms, *schedule) + inference.penalty
        values = [loss[:, None], terms.distortion[:, None], terms.rate[:, None], terms.rates]
        if moments and self.has_codes:
            mean = inference.latents[0].posterior.mean
            values += [mean, mean**2]
        return loss.mean(), torch.cat([value.detach() for value in values], dim=1)

    def row_sizes(self, moments: bool = False) -> list[int]:
        """Return how many numbers of a row are terms (loss, distortion, rate) and parts of the rate.

        With ``moments`` the posterior means of the latents and their squares follow, where an image has a code. Their
        variance over images is meaningless while the weights change, so training does without.
        """
        return [3, self.rate_parts] + [self.latent_dim] * (2 if moments and self.has_codes else 0)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the mean ``loss`` of the batch and the ``rows`` of its images."""
        loss_and_rows = self.compiled or type(self).loss_and_rows
        loss, rows = loss_and_rows(self, batch.x, *self.schedule, positions=batch.position)
        self.step_terms, self.step_grad_norm = rows[:, :3].mean(0), None
        return {"loss": loss, "rows": rows}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the ``rows`` of the images: of one posterior sample each, as a rule, in float32 whatever trains."""
        with in_float32(batch.x.device.type):
            return {"rows": self.loss_and_rows(batch.x, *self.schedule, moments=True)[1]}

    test_step = validation_step
