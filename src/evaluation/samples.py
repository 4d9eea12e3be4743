"""Evaluations of samples: their distance from the data, and whether they are copies of training images."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from src.data.base import Split
from src.data.pixels import Pixels
from src.evaluation.feature_networks import Features, inception_features
from src.evaluation.feature_training import own_features
from src.metrics import distances
from src.models.predictor import Predictor
from src.system.console import progress
from src.system.errors import NotApplicable
from src.system.seeds import stream

LARGE, FEW = 256, 10  # with more features than LARGE a Fréchet distance takes seconds, and is repeated FEW times
FEWEST = 10  # images in a set
ENOUGH_FOR_SCORE = 200
NEIGHBOURS_OF = 1_000  # samples whose nearest training image is searched


def samples(
    predictor: Predictor, images: int, bootstrap: int, components: int, inception: bool | None
) -> dict[str, Any]:
    """Compare samples from the prior and from the mixture with the split's images.

    The same is done for training images (no model can be expected to do better) and for reconstructions (no prior can
    be expected to do better with this decoder).

    Args:
        predictor: the model and images that are judged.
        images: images in each set; fewer if a split is smaller.
        bootstrap: repetitions for the standard error of the Fréchet distance; at most 10 in Inception's features.
        components: Gaussians of the mixture.
        inception: whether to compute true FID, KID and IS too; None does if the network is installed.

    Raises:
        UserError: Inception is required but not installed, or a feature is not finite.
    """
    splits = predictor.datamodule.splits
    available = min(len(splits.train), len(getattr(splits, predictor.split)))
    if available < FEWEST:
        return {"skipped": f"a split has {available} images, distances need {FEWEST}"}
    count = min(images, len(splits.train), len(getattr(splits, predictor.split)))
    sets: dict[str, Callable[[], Iterable[Tensor]]] = {
        "training": lambda: _images(predictor, "train", count),
        "reconstructions": lambda: predictor.reconstruct(_images(predictor, predictor.split, count)),
        "prior": lambda: predictor.generate(count),
        "mixture": lambda: predictor.generate_from_mixture(components, count),
    }
    if inception:
        predictor.datamodule.check_pixels("Inception's features are those of")
    networks = [own_features(predictor.datamodule, predictor.cache_dir, predictor.device)]
    if predictor.datamodule.pixels is not Pixels.FEATURES:
        networks.append(inception_features(inception))
    result: dict[str, Any] = {"images": count, "components": components}
    for network in (n for n in networks if n is not None):
        real, logits = network(_images(predictor, predictor.split, count), predictor.device)
        repeats = bootstrap if real.shape[1] <= LARGE else min(bootstrap, FEW)
        compared = {}
        for name, make in progress(sets.items(), f"samples in {network.name} features"):
            try:
                with stream(predictor.seed, "samples", name):
                    compared[name] = _compare(real, *network(make(), predictor.device), network, repeats)
            except NotApplicable as reason:  # there is no mixture without codes
                compared[name] = {"skipped": str(reason)}
        with stream(predictor.seed, "samples", "score"):
            score = _score(network, logits)
        result[network.name] = {
            "network": network.facts,
            "bootstrap": repeats,
            "sets": compared,
            "score_of_the_split": score,
        }
    result["memorisation"] = memorisation(predictor, count)
    if count < distances.ENOUGH:
        result["warning"] = (
            f"{count} images are fewer than {distances.ENOUGH:,}: distances are biased upwards and noisy; "
            "compare them only at the same number, and with the floor"
        )
    return result


def _images(predictor: Predictor, split: Split, count: int) -> Iterable[Tensor]:
    return (batch.x for batch, _ in predictor.batches(split, count))


def _compare(real: Tensor, other: Tensor, logits: Tensor, network: Features, bootstrap: int) -> dict[str, Any]:
    """Return all distances between two sets; only those in Inception's features are named FID and KID."""
    true = network.name == "inception-v3"
    frechet = distances.bootstrapped_frechet(real, other, bootstrap)
    kernel = distances.kernel_distance(real, other)
    named = {"fid" if true else "frechet_distance": frechet, "kid" if true else "kernel_distance": kernel}
    figures = {name: estimate.as_dict() for name, estimate in named.items()}
    return {**figures, "score": _score(network, logits), **distances.manifold(real, other)._asdict()}


def _score(network: Features, logits: Tensor) -> dict[str, Any] | None:
    """Return the Inception Score, by the classes of ``network``; None without classes or with under 200 images."""
    if not network.has_classes or len(logits) < ENOUGH_FOR_SCORE:
        return None
    return distances.inception_score(logits).as_dict()


def memorisation(predictor: Predictor, count: int) -> dict[str, Any]:
    """Measure how often a sample is nearer to a training image than to any of as many unseen ones.

    Unseen images are validation images, from the same source as the training images; a published test split may differ.
    ``nearer_to_training`` is 0.5 for a model that has memorised nothing. Its error counts samples with the same
    nearest image as one draw, and adds two draws to each side (Agresti & Coull 1998), so that it is large for a model
    that draws the same picture again and again. ``median_distance`` is the distance of samples to the nearest training
    image (root mean square over pixels), ``median_distance_of_unseen`` that of unseen images.

    Args:
        predictor: the model and images that are judged.
        count: samples, at most 1,000, and images on each side.
    """
    module = predictor.datamodule
    train = module.splits.train
    generated = torch.cat([*predictor.generate(min(NEIGHBOURS_OF, count))])
    size = min(count, len(module.splits.val), len(train))
    unseen = module.spread("val", size)
    to_training, nearest_training = distances.nearest(generated, module.seen, module.spread("train", size))
    to_unseen, nearest_unseen = distances.nearest(generated, module.seen, unseen)
    nearer = (to_training < to_unseen).double().mean().item()
    _, times = torch.where(to_training < to_unseen, nearest_training, nearest_unseen).unique(return_counts=True)
    draws = len(generated) ** 2 / times.square().sum().item()
    cautious = (nearer * draws + 2) / (draws + 4)
    others = module.seen(module.spread("val", min(NEIGHBOURS_OF, count)))
    return {
        "samples": len(generated),
        "references": size,
        "nearer_to_training": nearer,
        "standard_error": (cautious * (1 - cautious) / (draws + 4)) ** 0.5,
        "median_distance": distances.nearest(generated, module.seen, train)[0].median().item(),
        "median_distance_of_unseen": distances.nearest(others, module.seen, train)[0].median().item(),
    }
