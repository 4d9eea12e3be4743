"""A trained model together with its images: what is evaluated and explored."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from src.data.base import ImageDataModule, Split
from src.data.batches import Batch
from src.metrics.posterior import draw_mixture, fit_mixture, rates
from src.models.base import BaseVAE
from src.models.footprint import fitting
from src.models.objectives import elbo_terms, has_mean, is_gaussian, iwae_bound, log_weights
from src.models.priors import StandardNormal
from src.system.console import progress
from src.system.errors import TOO_LARGE, UserError
from src.system.seeds import derive_seed, stream

if TYPE_CHECKING:  # scikit-learn takes seconds to import, and training needs no mixture
    from sklearn.mixture import GaussianMixture

MIXTURE_CODES = 20_000
PRIOR_DRAWS = 50_000  # from which the moments and quantiles of a prior are taken that is no Gaussian


class Codes(NamedTuple):
    """Posteriors of N images in D latents, on the CPU."""

    mean: Tensor  # [N, D]
    scale: Tensor  # [N, D], standard deviations
    label: Tensor  # [N], -1 where unknown
    index: Tensor  # [N], which image of the pool

    def sample(self, *seed: object) -> Tensor:
        """One draw from each posterior ``[N, D]``: together a sample of the aggregate posterior."""
        with stream(*seed, "codes"):
            return self.mean + self.scale * torch.randn_like(self.mean)


class Costs(NamedTuple):
    """What each of N images costs a model, in nats, in float64 on the CPU."""

    distortion: Tensor  # [N]
    rate: Tensor  # [N], 0 where codes have no density
    bound: Tensor  # [N], the importance-weighted bound on -log p(x) from the same samples; nan without a density

    @property
    def total(self) -> Tensor:
        """The negative elbo ``[N]``, or the distortion where codes have no density."""
        return self.distortion + self.rate


@dataclass
class Predictor:
    """A trained model and its data; every random draw is a function of ``seed``.

    Attributes:
        model: in eval mode, on the device that is to compute.
        datamodule: the data set.
        split: whose images the model is judged on.
        seed: of every random draw.
        batch_size: images (or codes) that are taken or drawn together; fewer pass through a network at once if its
            layers are large.
        cache_dir: where feature networks are kept.
        checkpoint: hash of the checkpoint; "" for weights that are in no file.
        epochs: metrics of every epoch of training, as far as they are known.
    """

    model: BaseVAE
    datamodule: ImageDataModule
    split: Split = "test"
    seed: int = 0
    batch_size: int = 250
    cache_dir: Path = Path("outputs/cache")
    checkpoint: str = ""
    epochs: list[dict[str, float]] = field(default_factory=list)
    _codes: dict[Split, Codes] = field(default_factory=dict)
    _mixtures: dict[int, "GaussianMixture"] = field(default_factory=dict)
    _prior_draws: Tensor | None = None

    def __post_init__(self) -> None:
        channels, height, width = self.datamodule.image_shape
        self.batch_size = max(1, min(self.batch_size, 2**22 // (channels * height * width)))

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self.model.device

    @property
    def pixels(self) -> int:
        """Return the numbers in an image: channels x height x width."""
        return torch.Size(self.datamodule.image_shape).numel()

    def batches(self, split: Split, count: int | None = None) -> Iterator[tuple[Batch, Tensor]]:
        """Yield images spread evenly over a split, as the model sees them on its device, and their pool indices.

        Random pixels (dynamic binarization, dequantization) are a function of seed, split and position.
        """
        pool = self.datamodule.pool
        for number, index in enumerate(self.datamodule.spread(split, count).split(self.batch_size)):
            with stream(self.seed, "pixels", split, number):
                x = self.datamodule.scale(pool.images[index].to(self.device))
            yield Batch(x, pool.labels[index]), index

    @torch.no_grad()
    def to_encode(self, x: Tensor) -> Iterator[Tensor]:
        """Yield images ``[N, C, H, W]`` in batches that pass through the encoder at once, on the device."""
        at_once = min(self.batch_size, fitting(self.model.encoder, x[:1].to(self.device)))
        for part in x.split(at_once):
            yield part.to(self.device)

    @torch.no_grad()
    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations ``[N, D]``, on the CPU, of the posteriors of images ``[N, C, H, W]``.

        Raises:
            NotApplicable: the posterior is not a Gaussian of independent latents.
        """
        posteriors = [self.model.embed(part) for part in self.to_encode(x)]
        return torch.cat([p.mean for p in posteriors]).cpu(), torch.cat([p.stddev for p in posteriors]).cpu()

    @torch.no_grad()
    def costs(self, x: Tensor, samples: int) -> Costs:
        """Return the costs of images ``[N, C, H, W]``, from K posterior samples of each.

        Each gets the same noise, so equal images cost the same, whatever they are beside.
        """
        rows = []
        for one in progress(x.split(1), "costs of images"):
            image = one.to(self.device)
            with stream(self.seed, "costs"):
                inference = self.model.infer(image, samples)
            terms = elbo_terms(image, inference)
            bound = -iwae_bound(log_weights(image, inference)).item() if self.model.has_elbo else float("nan")
            # Numbers, not tensors: small tensors that are kept between large ones that are freed fragment the memory.
            rows.append((terms.distortion.item(), terms.rate.item(), bound))
        return Costs(*torch.tensor(rows, dtype=torch.float64).T)

    @torch.no_grad()
    def codes(self, split: Split) -> Codes:
        """Return the posteriors of every image of a split; they are computed once.

        Raises:
            NotApplicable: the posterior is not a Gaussian of independent latents.
            UserError: a code is not finite.
        """
        if split not in self._codes:
            parts = []
            for batch, index in self.batches(split):
                parts.append((*self.posterior(batch.x), batch.label, index))
            codes = Codes(*(torch.cat(column) for column in zip(*parts, strict=True)))
            if not (codes.mean.isfinite().all() and codes.scale.isfinite().all()):
                raise UserError(f"the codes of the images are not finite: {TOO_LARGE}")
            self._codes[split] = codes
        return self._codes[split]

    def rates(self) -> Tensor:
        """Return the mean rate ``[D]`` of each latent over the split, in nats.

        If the latents of the prior are no independent Gaussians, the rate has no such parts: it is then that of each
        latent against a Gaussian with the prior's mean and standard deviation.

        Raises:
            NotApplicable: the posterior is not a Gaussian of independent latents.
        """
        self.model.check_elbo()
        mean, scale, *_ = self.codes(self.split)
        centre, spread = self.prior_moments()
        return rates((mean - centre) / spread, scale / spread)

    @property
    def has_standard_prior(self) -> bool:
        """Return whether the prior is N(0, I)."""
        return isinstance(self.model.latent_prior, StandardNormal)

    @torch.no_grad()
    def prior_moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation ``[D]`` of each latent under the prior, on the CPU."""
        prior = self.model.prior()
        if is_gaussian(prior):
            return prior.mean.cpu(), prior.stddev.cpu()
        draws = self.prior_draws()
        return draws.mean(0), draws.std(0)

    @torch.no_grad()
    def prior_quantiles(self, shares: Tensor) -> Tensor:
        """Return the codes ``[Q, D]`` below which the prior has these shares ``[Q]`` of each latent, on the CPU."""
        prior = self.model.prior()
        if is_gaussian(prior):
            return prior.base_dist.icdf(shares[:, None].to(self.device)).cpu()
        return self.prior_draws().quantile(shares, dim=0)

    @torch.no_grad()
    def prior_draws(self) -> Tensor:
        """Return 50,000 codes ``[N, D]`` from the prior, on the CPU; they are drawn once."""
        if self._prior_draws is None:
            with stream(self.seed, "prior", "draws"):
                self._prior_draws = self.model.prior().sample((PRIOR_DRAWS,)).cpu()
        return self._prior_draws

    @torch.no_grad()
    def log_prior(self, z: Tensor) -> Tensor:
        """Return the log density of codes ``[N, D]`` under the prior, ``[N]``, in float64 on the CPU."""
        prior = self.model.prior()
        return torch.cat([prior.log_prob(part.to(self.device)).double().cpu() for part in z.split(self.batch_size)])

    def mixture(self, components: int) -> "GaussianMixture":
        """Fit a mixture to a draw from the posteriors of (at most 20,000) training images; it is fitted once."""
        if components not in self._mixtures:
            z = self.codes("train").sample(self.seed)
            count = min(len(z), MIXTURE_CODES)
            chosen = z[torch.arange(count) * len(z) // count]
            self._mixtures[components] = fit_mixture(chosen, components, derive_seed(self.seed, "mixture"))
        return self._mixtures[components]

    @torch.no_grad()
    def likelihoods(self, *z: Tensor) -> Iterator[Distribution]:
        """Decode codes ``[N, D]`` of each group: yield p(x|z) in batches that fit into memory, on the device."""
        at_once = min(self.batch_size, fitting(self.model.decoder, z[-1][:1].to(self.device)))
        for parts in zip(*(group.split(at_once) for group in z), strict=True):
            yield self.model.decode(*(part.to(self.device) for part in parts))

    def decode(self, *z: Tensor) -> Iterator[Tensor]:
        """Decode codes ``[N, D]`` of each group: yield the means of p(x|z) in batches ``[B, C, H, W]``, on the CPU."""
        for likelihood in self.likelihoods(*z):
            yield likelihood.mean.cpu()

    @cached_property
    def reconstructs_means(self) -> bool:
        """Return whether reconstructions are decoded posterior means: a flow has none, nor have several groups."""
        posterior = self.model.example_posterior()
        return posterior is not None and has_mean(posterior)

    @torch.no_grad()
    def reconstruct(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode batches of images and decode their posterior means: yield a batch ``[B, C, H, W]`` for each.

        Where posteriors have no mean (:attr:`reconstructs_means`), it decodes a draw from each.
        """
        for number, x in enumerate(batches):
            if self.reconstructs_means:
                codes = [torch.cat([self.model.posterior(part).mean for part in self.to_encode(x)])]
            else:
                with stream(self.seed, "reconstructions", number):
                    draws = [self.model.sampler(part)(1) for part in self.to_encode(x)]
                codes = [torch.cat([latent.z[0] for latent in group]) for group in zip(*draws, strict=True)]
            yield torch.cat([*self.decode(*codes)])

    @torch.no_grad()
    def generate(self, count: int) -> Iterator[Tensor]:
        """Draw ``count`` codes from the model's prior and decode them: yield batches ``[B, C, H, W]``."""
        for start in range(0, count, self.batch_size):
            with stream(self.seed, "prior", start):
                latents = self.model.sampler()(min(self.batch_size, count - start))
            yield from self.decode(*(latent.z for latent in latents))

    def generate_from_mixture(self, components: int, count: int) -> Iterator[Tensor]:
        """Draw ``count`` codes from the mixture fitted to training codes and decode them, as in :meth:`generate`."""
        z = draw_mixture(self.mixture(components), count, derive_seed(self.seed, "mixture", "draw"))
        return self.decode(z)
