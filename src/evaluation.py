"""What can be said of a trained model in figures: one function a part, each a plain dictionary for ``metrics.json``.

Training ends with :func:`elbo`, ``python -m src.evaluate`` runs them all. Every part carries the seed, the number of
images, the checkpoint's hash and the data fingerprint; a part that cannot be computed says why under ``skipped``.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning as L
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from src.callbacks.memory import ProgressBar
from src.callbacks.resume import ReproducibleNoise
from src.console import progress
from src.data.base import ImageDataModule, Split
from src.errors import UserError
from src.metrics import distances, posterior, probes
from src.metrics.bounds import importance_bound
from src.metrics.features import Features, inception_features, own_features
from src.metrics.reconstruction import Similarity
from src.models.base import BaseVAE
from src.randomness import stream
from src.subject import Subject

log = logging.getLogger(__name__)
Figures = dict[str, Any]

NUMBERS_AT_ONCE = 2**21  # pixels of the images that are decoded at once for the importance bound
NEIGHBOURS_OF = 1_000  # samples whose nearest training image is looked for


def tested(trainer: L.Trainer, model: BaseVAE, datamodule: ImageDataModule) -> dict[str, float]:
    """Exact means over the test split (or over ``datamodule.tested``): elbo, distortion, rate, loss, bits/dim.

    One posterior sample an image, in nats per image. What training ends with, and the evaluation's first part.
    """
    trainer.test(model, datamodule, verbose=False)
    metrics = trainer.callback_metrics.items()
    return {name.removeprefix("test/"): float(value) for name, value in metrics if name.startswith("test/")}


def elbo(subject: Subject) -> Figures:
    """ELBO, distortion and rate over the whole split: the figures that training ended with, from the run folder."""
    trainer = L.Trainer(
        accelerator="gpu" if subject.device.type == "cuda" else "cpu",
        devices=1,
        logger=False,
        callbacks=[ReproducibleNoise(subject.seed), ProgressBar()],
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    device, subject.datamodule.tested = subject.device, subject.split
    figures = tested(trainer, subject.model, subject.datamodule)
    subject.model.to(device).eval()
    return {"images": len(getattr(subject.datamodule.splits, subject.split)), **figures}


def bound(subject: Subject, samples: int, images: int | None) -> Figures:
    """Importance-sampled bound on log p(x), nats per image, with its standard error over images.

    Args:
        subject: what is judged.
        samples: K.
        images: how many, spread evenly over the split; None for all.
    """
    if samples < 1 or (images is not None and images < 1):
        raise UserError(f"bound.samples={samples}, bound.images={images}: both must be at least 1")
    splits = subject.datamodule.splits
    count = min(images or len(getattr(splits, subject.split)), len(getattr(splits, subject.split)))
    decoded_at_once = max(1, NUMBERS_AT_ONCE // subject.pixels)
    group = max(1, min(8, decoded_at_once // samples))  # images at once: more only where all their samples fit
    parts = []
    for number, x in enumerate(progress(_cut(subject, count, group), "importance bound")):
        began = time.perf_counter()
        with stream(subject.seed, "bound", number):
            parts.append(importance_bound(subject.model, x, samples, max(1, decoded_at_once // len(x))))
        if number == 1 or count <= group:  # the first one warms up
            _forecast(samples, count, samples * len(x) / (time.perf_counter() - began))
    estimates, elbos, effective = (torch.cat(column) for column in zip(*parts, strict=True))
    gap, value = estimates - elbos, estimates.mean().item()
    return {
        "images": count,
        "samples": samples,
        "log_likelihood": value,
        "standard_error": _standard_error(estimates),
        "elbo_of_these_images": elbos.mean().item(),
        "gap": gap.mean().item(),
        "gap_standard_error": _standard_error(gap),
        "bits_per_dim": subject.model.likelihood.bits_per_dim(-value, subject.pixels, subject.datamodule.pixels),
        "median_effective_samples": effective.median().item(),
    }


def _cut(subject: Subject, count: int, group: int) -> list[Tensor]:
    return [part for batch, _ in subject.batches(subject.split, count) for part in batch.x.split(group)]


def _forecast(samples: int, images: int, per_second: float) -> None:
    seconds = samples * images / per_second
    much = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    log.info(
        "  %d samples of %d images at %s decodings a second: about %s", samples, images, f"{per_second:,.0f}", much
    )


def _standard_error(values: Tensor) -> float | None:
    """Of the mean over images; None for a single one."""
    return values.std().item() / len(values) ** 0.5 if len(values) > 1 else None


def latents(subject: Subject, components: int) -> Figures:
    """Use of the latents: rate of each, active units, mutual information, gap of aggregate posterior and prior."""
    mean, scale, label, _ = subject.codes(subject.split)
    z = subject.codes(subject.split).sample(subject.seed)
    rate = posterior.rates(mean, scale)
    active = posterior.active_units(mean)
    cut = posterior.surgery(mean, scale, z, subject.mixture(components))
    return {
        "images": len(label),
        "rate": rate.sum().item(),
        "rate_per_latent": rate.tolist(),
        "variance_of_means": posterior.variance_of_means(mean).tolist(),
        "active": int(active.sum()),
        "carry_99_percent": posterior.carriers(rate),
        "latent_dim": len(rate),
        "mutual_information": list(cut.information),
        "aggregate_gap": list(cut.gap),
        "information_ceiling": cut.ceiling,
        "aggregate_mean": z.mean(0).tolist(),
        "aggregate_std": z.std(0, correction=0).tolist(),
        "verdict": posterior.verdict(int(active.sum()), rate, cut.gap, subject.model.kl_weight),
    }


def reconstruction(subject: Subject) -> Figures:
    """PSNR (dB), SSIM and MS-SSIM of reconstructions from the posterior mean, over the whole split."""
    similarity = Similarity(min(subject.datamodule.image_shape[1:]))
    for batch, _ in progress(list(subject.batches(subject.split)), "reconstructions"):
        x = batch.x.cpu()
        similarity.update(next(subject.reconstruct([x])), x)
    return {"images": len(getattr(subject.datamodule.splits, subject.split)), **similarity.compute()}


def samples(subject: Subject, images: int, bootstrap: int, components: int, inception: bool | None) -> Figures:
    """Samples of the prior and of the mixture against the split, between a ceiling and a floor.

    The same figures are given for training images (no model can be expected to do better) and for reconstructions
    (no prior can be expected to do better with this decoder).

    Args:
        subject: what is judged.
        images: images in each set; fewer where a split is smaller.
        bootstrap: repetitions for the standard error of the Fréchet distance.
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
    result: Figures = {"images": count, "components": components, "bootstrap": bootstrap}
    for network in (n for n in networks if n is not None):
        real, logits = network(_images(subject, subject.split, count), subject.device)
        compared = {}
        for name, make in progress(sets.items(), f"samples in {network.name} features"):
            with stream(subject.seed, "samples", name):
                compared[name] = _compare(real, *network(make(), subject.device), network, bootstrap)
        score = _score(network, logits, subject.seed)
        result[network.name] = {"network": network.facts, "sets": compared, "score_of_the_split": score}
    result["memorisation"] = memorisation(subject, count)
    if count < distances.ENOUGH:
        result["warning"] = (
            f"{count} images are fewer than {distances.ENOUGH:,}: distances are biased upwards and noisy; "
            "compare them only at the same number, and with the floor"
        )
    return result


def _images(subject: Subject, split: Split, count: int) -> Iterable[Tensor]:
    return (batch.x for batch, _ in subject.batches(split, count))


def _compare(real: Tensor, other: Tensor, logits: Tensor, network: Features, bootstrap: int) -> Figures:
    """All distances between two sets, under names that say in whose features."""
    true = network.name == "inception-v3"
    frechet = distances.bootstrapped_frechet(real, other, bootstrap)
    kernel = distances.kernel_distance(real, other)
    named = {"fid" if true else "frechet_distance": frechet, "kid" if true else "kernel_distance": kernel}
    figures = {name: {"value": e.value, "standard_error": e.standard_error} for name, e in named.items()}
    return {**figures, "score": _score(network, logits), **distances.manifold(real, other)._asdict()}


def _score(network: Features, logits: Tensor, *seed: object) -> Figures | None:
    """Inception Score, or the same with the data set's own classifier; None in features without classes."""
    if not network.has_classes or len(logits) < 10:
        return None
    if seed:
        with stream(*seed, "score"):
            return _score(network, logits)
    return distances.inception_score(logits)._asdict()


def memorisation(subject: Subject, count: int) -> Figures:
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


def representation(subject: Subject, train_images: int) -> Figures:
    """Linear probe and k-nearest neighbours on posterior means, and the probe on as many principal components.

    Args:
        subject: what is judged.
        train_images: training images to fit on, spread evenly.
    """
    module = subject.datamodule
    if (module.pool.labels[torch.cat(module.splits[:3])] < 0).any() or len(module.pool.classes) < 2:
        return {"skipped": "the images have no class labels"}
    parts: tuple[Split, ...] = ("train", "val", subject.split)
    chosen = {part: subject.codes(part) for part in parts}
    keep = {part: torch.arange(len(codes.label)) for part, codes in chosen.items()}
    size = len(keep["train"])
    keep["train"] = torch.arange(min(train_images, size)) * size // min(train_images, size)
    if any(len(codes.label[keep[part]].unique()) < 2 for part, codes in chosen.items() if part == "train"):
        return {"skipped": "the training images are all of one class"}
    means = [probes.Labelled(c.mean[keep[p]].numpy(), c.label[keep[p]].numpy()) for p, c in chosen.items()]
    flat = [module.pool.images[c.index[keep[p]]].flatten(1).numpy() / 255 for p, c in chosen.items()]
    pca = PCA(min(subject.model.latent_dim, *flat[0].shape), svd_solver="randomized", random_state=0).fit(flat[0])
    pixels = [probes.Labelled(pca.transform(x), codes.labels) for x, codes in zip(flat, means, strict=True)]
    commonest = torch.bincount(chosen[subject.split].label).max() / len(chosen[subject.split].label)
    if subject.split == "val":
        means, pixels = [*means, means[1]], [*pixels, pixels[1]]
    return {
        "images": len(means[2].labels),
        "train_images": len(means[0].labels),
        "linear_probe": probes.linear_probe(*means),
        "nearest_neighbours": probes.nearest_neighbours(*means),
        "linear_probe_on_principal_components": probes.linear_probe(*pixels),
        "commonest_class": commonest.item(),
    }


PARTS: dict[str, Callable[..., Figures]] = {
    "elbo": elbo,
    "bound": bound,
    "latents": latents,
    "reconstruction": reconstruction,
    "samples": samples,
    "representation": representation,
}


def parts_of(wanted: str | Sequence[str]) -> list[str]:
    """Names of parts from one name or several.

    Raises:
        UserError: there is no such part.
    """
    names = [wanted] if isinstance(wanted, str) else [*wanted]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise UserError(f"parts={', '.join(unknown)}: choose from {', '.join(PARTS)}")
    return names


def evaluate(subject: Subject, options: dict[str, dict[str, Any]]) -> dict[str, Figures]:
    """The parts that ``options`` names, each called with its values, stamped with what they belong to."""
    stamp = {"seed": subject.seed, "checkpoint": subject.checkpoint, "data": subject.datamodule.fingerprint}
    results = {}
    for number, (name, values) in enumerate(options.items(), 1):
        log.info("%d/%d %s", number, len(options), name)
        results[name] = {**stamp, **PARTS[name](subject, **values)}
    return results
