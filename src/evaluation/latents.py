"""Evaluations of the codes: how the latents are used, and what a classifier can read from them."""

from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA

from src.data.base import Split
from src.metrics import posterior, probes
from src.models.predictor import Codes, Predictor


def latents(predictor: Predictor, components: int) -> dict[str, Any]:
    """Evaluate the latents: rate of each, active units, mutual information, gap of aggregate posterior and prior.

    Rates and bounds are in nats per image.

    Args:
        predictor: the model and images that are judged.
        components: of the mixture that bounds the gap.

    Raises:
        NotApplicable: the posteriors are not Gaussians of independent latents.
    """
    rate = predictor.rates()
    mean, scale, label, _ = predictor.codes(predictor.split)
    z = predictor.codes(predictor.split).sample(predictor.seed)
    active = posterior.active_units(mean)
    own = None if predictor.has_standard_prior else predictor.log_prior(z)
    bounds = posterior.surgery(mean, scale, z, predictor.mixture(components), own)
    return {
        "images": len(label),
        "rate": bounds.rate,
        "rate_per_latent": rate.tolist(),
        "variance_of_means": posterior.variance_of_means(mean).tolist(),
        "active": int(active.sum()),
        "carry_99_percent": posterior.carriers(rate),
        "latent_dim": len(rate),
        "mutual_information": list(bounds.information),
        "aggregate_gap": list(bounds.gap),
        "bounds_standard_error": bounds.standard_error,
        "information_ceiling": bounds.ceiling,
        "aggregate_mean": z.mean(0).tolist(),
        "aggregate_std": z.std(0, correction=0).tolist(),
        "verdict": posterior.verdict(int(active.sum()), rate, bounds.gap, predictor.model.kl_weight),
    }


def representation(predictor: Predictor, train_images: int) -> dict[str, Any]:
    """Score a linear probe and k-nearest neighbours on posterior means, and the probe on as many principal components.

    Args:
        predictor: the model and images that are judged.
        train_images: training images to fit on, spread evenly over the split.

    Raises:
        NotApplicable: the posteriors are not Gaussians of independent latents.
    """
    module = predictor.datamodule
    if (module.pool.labels[torch.cat(module.splits[:3])] < 0).any():
        return {"skipped": "the images have no class labels"}
    splits: tuple[Split, ...] = ("train", "val", predictor.split)
    codes = [_thinned(predictor.codes(split), train_images if split == "train" else None) for split in splits]
    if len(codes[0].label.unique()) < 2:
        return {"skipped": "the training images are all of one class"}
    labels = [c.label.numpy() for c in codes]
    means = [probes.Labelled(c.mean.numpy(), label) for c, label in zip(codes, labels, strict=True)]
    return {
        "images": len(labels[2]),
        "train_images": len(labels[0]),
        "linear_probe": probes.linear_probe(*means),
        "nearest_neighbours": probes.nearest_neighbours(*means),
        "linear_probe_on_principal_components": _probe_of_pixels(predictor, codes),
        "commonest_class": float(np.mean(labels[2] == np.bincount(labels[0]).argmax())),
        "optimistic": predictor.split == "val",  # C and k are chosen on validation images
    }


def _thinned(codes: Codes, count: int | None) -> Codes:
    """Return ``count`` of the codes, spread evenly; all of them by default, or if there are fewer."""
    size = len(codes.label)
    count = size if count is None else min(count, size)
    keep = torch.arange(count) * size // count
    return Codes(*(column[keep] for column in codes))


def _probe_of_pixels(predictor: Predictor, codes: list[Codes]) -> dict[str, Any] | None:
    """Score the linear probe on as many principal components of the pixels as there are latents.

    It is the baseline for the probe of the codes; None if the pixels need more than 1 GiB.
    """
    pool = predictor.datamodule.pool.images
    if max(len(c.index) for c in codes) * pool[0].numel() > 2**28:
        return None
    flat = [pool[c.index].flatten(1).float().numpy() / 255 for c in codes]
    pca = PCA(min(predictor.model.latent_dim, *flat[0].shape), svd_solver="randomized", random_state=0).fit(flat[0])
    parts = [probes.Labelled(pca.transform(x), c.label.numpy()) for x, c in zip(flat, codes, strict=True)]
    return probes.linear_probe(*parts)
