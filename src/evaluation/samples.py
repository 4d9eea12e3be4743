"""Figures of samples: how far they are from the data, and whether they are copies of it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from src.console import progress
from src.data.base import Split
from src.errors import UserError
from src.metrics import distances
from src.metrics.features import Features, inception_features, own_features
from src.randomness import stream
from src.subject import Subject

LARGE, FEW = 256, 10  # features beyond which a Fréchet distance takes seconds, and repetitions of it then
NEIGHBOURS_OF = 1_000  # samples whose nearest training image is looked for


def samples(subject: Subject, images: int, bootstrap: int, components: int, inception: bool | None) -> dict[str, Any]:
    """Samples of the prior and of the mixture against the split, between a ceiling and a floor.

    The same figures are given for training images (no model can be expected to do better) and for reconstructions
    (no prior can be expected to do better with this decoder).

    Args:
        subject: what is judged.
        images: images in each set; fewer where a split is smaller.
        bootstrap: repetitions for the standard error of the Fréchet distance; at most 10 in Inception's features.
        components: of the mixture.
        inception: also true FID, KID and IS; None where its network is installed.
    """
    splits = subject.datamodule.splits
    count = min(images, len(splits.train), len(getattr(splits, subject.split)))
    if count < 3 or bootstrap < 2:
        raise UserError(f"samples.images={count}, samples.bootstrap={bootstrap}: at least 3 and 2 are needed")
    sets: dict[str, Callable[[], Iterable[Tensor]]] = {
        "training": lambda: _images(subject, "train", count),
        "reconstructions": lambda: subject.reconstruct(_images(subject, subject.split, count)),
        "prior": lambda: subject.generate(count),
        "mixture": lambda: subject.generate_from_mixture(components, count),
    }
    networks = [own_features(subject.datamodule, subject.cache_dir, subject.device), inception_features(inception)]
    result: dict[str, Any] = {"images": count, "components": components}
    for network in (n for n in networks if n is not None):
        real, logits = network(_images(subject, subject.split, count), subject.device)
        repeats = bootstrap if real.shape[1] <= LARGE else min(bootstrap, FEW)
        compared = {}
        for name, make in progress(sets.items(), f"samples in {network.name} features"):
            with stream(subject.seed, "samples", name):
                compared[name] = _compare(real, *network(make(), subject.device), network, repeats)
        score = _score(network, logits, subject.seed)
        result[network.name] = {
            "network": network.facts,
            "bootstrap": repeats,
            "sets": compared,
            "score_of_the_split": score,
        }
    result["memorisation"] = memorisation(subject, count)
    if count < distances.ENOUGH:
        result["warning"] = (
            f"{count} images are fewer than {distances.ENOUGH:,}: distances are biased upwards and noisy; "
            "compare them only at the same number, and with the floor"
        )
    return result


def _images(subject: Subject, split: Split, count: int) -> Iterable[Tensor]:
    return (batch.x for batch, _ in subject.batches(split, count))


def _compare(real: Tensor, other: Tensor, logits: Tensor, network: Features, bootstrap: int) -> dict[str, Any]:
    """All distances between two sets, under names that say in whose features."""
    true = network.name == "inception-v3"
    frechet = distances.bootstrapped_frechet(real, other, bootstrap)
    kernel = distances.kernel_distance(real, other)
    named = {"fid" if true else "frechet_distance": frechet, "kid" if true else "kernel_distance": kernel}
    figures = {name: {"value": e.value, "standard_error": e.standard_error} for name, e in named.items()}
    return {**figures, "score": _score(network, logits), **distances.manifold(real, other)._asdict()}


def _score(network: Features, logits: Tensor, *seed: object) -> dict[str, Any] | None:
    """Inception Score, or the same with the data set's own classifier; None in features without classes."""
    if not network.has_classes or len(logits) < 10:
        return None
    if seed:
        with stream(*seed, "score"):
            return _score(network, logits)
    return distances.inception_score(logits)._asdict()


def memorisation(subject: Subject, count: int) -> dict[str, Any]:
    """Whether samples are copies: how often one is nearer to a training image than to any of as many unseen ones.

    ``nearer_to_training`` is 0.5 for a model that has learnt nothing by heart; ``median_distance`` compares the
    distance of samples to the nearest training image with that of unseen images (root mean square over pixels).
    """
    pool, splits = subject.datamodule.pool.images, subject.datamodule.splits
    drawn = torch.cat([*subject.generate(min(NEIGHBOURS_OF, count))])
    unseen = subject.datamodule.spread(subject.split, count)
    from_training, _ = distances.nearest(drawn, pool, subject.datamodule.spread("train", count))
    from_unseen, _ = distances.nearest(drawn, pool, unseen)
    nearer = (from_training < from_unseen).double().mean().item()
    tests = torch.cat([*_images(subject, subject.split, min(NEIGHBOURS_OF, count))]).cpu()
    return {
        "samples": len(drawn),
        "nearer_to_training": nearer,
        "standard_error": (nearer * (1 - nearer) / len(drawn)) ** 0.5,
        "median_distance": distances.nearest(drawn, pool, splits.train)[0].median().item(),
        "median_distance_of_unseen": distances.nearest(tests, pool, splits.train)[0].median().item(),
    }
