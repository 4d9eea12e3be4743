"""Evaluations of images under the model: ELBO, bounds on their likelihood, reconstructions."""

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily

from src.evaluation.importance import importance_bound
from src.metrics.reconstruction import Similarity
from src.models.base import BaseVAE
from src.models.footprint import BYTES_AT_ONCE, largest_layer
from src.models.predictor import Predictor
from src.runs.fit import tested
from src.system.console import progress
from src.system.seeds import stream
from src.training.epoch_means import EpochMeans
from src.training.history import ProgressBar
from src.training.resume import ReproducibleNoise

PRIOR_COPIES = 3  # of the distances of a code from every component
LIKELIHOODS_IMAGES = 8  # of each map that a decoder gives: what a likelihood holds in float32, intermediate results too


def elbo(predictor: Predictor) -> dict[str, Any]:
    """Return ELBO, distortion and rate, nats per image, over the whole split: the numbers that training ended with.

    Codes without a density leave the distortion.

    The loss is left out, as its KL weight belongs to the training.
    """
    trainer = L.Trainer(
        accelerator="gpu" if predictor.device.type == "cuda" else "cpu",
        devices=1,
        logger=False,
        callbacks=[EpochMeans(), ReproducibleNoise(predictor.seed), ProgressBar()],
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    device, predictor.datamodule.tested = predictor.device, predictor.split
    figures = tested(trainer, predictor.model, predictor.datamodule)
    figures.pop("loss")
    predictor.model.to(device).eval()
    return {"images": len(getattr(predictor.datamodule.splits, predictor.split)), **figures}


def bound(predictor: Predictor, samples: int, images: int | None) -> dict[str, Any]:
    """Return the importance-sampled bound on log p(x), nats per image, with its standard error over images.

    Args:
        predictor: the model and images that are judged.
        samples: posterior samples K of each image.
        images: number of images, spread evenly over the split; None for all.

    Raises:
        NotApplicable: codes have no density.
    """
    predictor.model.check_elbo()
    size = len(getattr(predictor.datamodule.splits, predictor.split))
    count = size if images is None else min(size, images)
    group, at_once = samples_at_once(bytes_a_code(predictor.model), samples)
    # Filled in place: small tensors that are kept between large ones that are freed would fragment the memory, by
    # megabytes an image.
    estimates, elbos, effective = found = torch.empty(3, count, dtype=torch.float64)
    done = 0
    groups = (x for batch, _ in predictor.batches(predictor.split, count) for x in batch.x.split(group))
    for number, x in enumerate(progress(groups, "importance bound", -(-count // group))):
        with stream(predictor.seed, "bound", number):
            estimate = importance_bound(predictor.model, x, samples, at_once)
        found[:, done : done + len(x)] = torch.stack([*estimate])
        done += len(x)
    gap, value, error = estimates - elbos, estimates.mean().item(), _standard_error(estimates)
    bits = predictor.model.likelihood.bits_per_dim(-value, predictor.pixels, predictor.datamodule.pixels)
    known = bits is not None and error is not None
    return {
        "images": count,
        "samples": samples,
        "log_likelihood": value,
        "standard_error": error,
        "elbo_of_these_images": elbos.mean().item(),
        "gap": gap.mean().item(),
        "gap_standard_error": _standard_error(gap),
        "bits_per_dim": bits,
        "bits_per_dim_standard_error": error / predictor.pixels / math.log(2) if known else None,
        "median_effective_samples": effective.median().item(),
    }


def bytes_a_code(model: BaseVAE) -> int:
    """Return the peak memory of a code: what goes into and comes out of the decoder's largest layer.

    Likelihood and prior count as layers.
    """
    z = torch.zeros(1, *model.latent_shape, device=model.device)
    return max(likelihood_bytes(model), largest_layer(model.decoder, z), prior_bytes(model))


def prior_bytes(model: BaseVAE) -> int:
    """Return the bytes that the density of a code takes under a mixture that torch spreads out: a few copies of it.

    :class:`~src.models.priors.GaussianMixture` splits its codes by itself.
    """
    part = prior = model.prior()
    while isinstance(part, MixtureSameFamily):
        part = part.component_distribution
    numbers = part.batch_shape.numel() * part.event_shape.numel() if part is not prior else 0
    return PRIOR_COPIES * numbers * torch.float32.itemsize


def likelihood_bytes(model: BaseVAE) -> int:
    """Return the bytes that the likelihood of an image takes: it holds some copies of the decoder's maps at a time."""
    channels, height, width = model.image_shape
    return LIKELIHOODS_IMAGES * model.likelihood.outputs(channels) * height * width * torch.float32.itemsize


def samples_at_once(bytes_each: int, samples: int) -> tuple[int, int]:
    """Return how many images, and how many samples of each, are decoded at once within the limit of memory.

    There are several images only if all of their samples fit.

    Args:
        bytes_each: memory that a sample takes.
        samples: of each image.
    """
    decoded_at_once = max(1, BYTES_AT_ONCE // bytes_each)
    group = max(1, min(8, decoded_at_once // samples))
    return group, max(1, decoded_at_once // group)


def _standard_error(values: Tensor) -> float | None:
    """Return the standard error of the mean over images; None for a single one."""
    return values.std().item() / len(values) ** 0.5 if len(values) > 1 else None


def reconstruction(predictor: Predictor) -> dict[str, Any]:
    """Return PSNR (dB), SSIM and MS-SSIM of reconstructions over the whole split.

    They are decoded from posterior means; where posteriors have none, from a draw of each, which costs some dB.

    Raises:
        NotApplicable: the model sees no pixels.
    """
    predictor.datamodule.check_pixels("PSNR and SSIM compare")
    similarity = Similarity(min(predictor.datamodule.image_shape[1:]))
    count = len(getattr(predictor.datamodule.splits, predictor.split))
    batches = predictor.batches(predictor.split)
    for batch, _ in progress(batches, "reconstructions", -(-count // predictor.batch_size)):
        x = batch.x.cpu()
        similarity.update(next(predictor.reconstruct([x])), x)
    return {"images": count, "codes": "means" if predictor.reconstructs_means else "draws", **similarity.compute()}
