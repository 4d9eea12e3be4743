"""Pictures of a split and of what the prior draws: reconstructions, samples, losses, rates, codes, classes.

A picture that a model or a data set cannot have raises :class:`~src.system.errors.NotApplicable`, which says why.
"""

import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from src.exploration import curves, grids, latents
from src.exploration.writing import distinct
from src.metrics import distances, posterior
from src.models.predictor import Predictor
from src.system.errors import NotApplicable

A_ROW, LONGEST = 8, 20  # reconstructions side by side, letters of a name below them
CLASSES_A_ROW, MOST_A_ROW = 5, 16  # pictures side by side; where the classes are many, as many as there are rows
COMPONENTS = 10  # of the mixture


def originals_of(predictor: Predictor, count: int) -> Tensor:
    """Return ``count`` images ``[N, C, H, W]`` spread evenly over the split, as the model sees them, on the CPU."""
    return torch.cat([batch.x.cpu() for batch, _ in predictor.batches(predictor.split, count)])


def best_latents(predictor: Predictor, count: int) -> list[int]:
    """Return the latents that say most on the split, the largest first: see :func:`measure_of_latents`."""
    return posterior.most_informative(measure_of_latents(predictor)[0], count)


def measure_of_latents(predictor: Predictor) -> tuple[Tensor, str]:
    """Return how much each latent says ``[D]``, and the name of that: its rate, or its variance where it has none."""
    if predictor.model.has_elbo:
        return predictor.rates(), "rate"
    return posterior.variance_of_means(predictor.codes(predictor.split).mean), "variance"


def reconstructions(predictor: Predictor, count: int = 32) -> Figure:
    """Draw images of the split over their reconstructions, with class and file where known."""
    pool, index = predictor.datamodule.pool, predictor.datamodule.spread(predictor.split, count).tolist()
    originals = originals_of(predictor, count)
    drawn = torch.cat([*predictor.reconstruct([originals])])
    lines = [[pool.classes[pool.labels[i]] if pool.labels[i] >= 0 else "" for i in index]]
    if pool.names:
        lines.append(distinct([Path(pool.names[i]).name for i in index], LONGEST))
    lines[0] = distinct(lines[0], LONGEST)
    names = ["\n".join(line for line in caption if line) for caption in zip(*lines, strict=True)]
    columns = min(A_ROW, len(originals))
    tables, captions = [], []
    for start in range(0, len(originals) // columns * columns, columns):
        here = slice(start, start + columns)
        tables.append(torch.stack([originals[here], drawn[here]]))
        captions.append(names[here])
    title = f"Originals ({predictor.split} split), each row over its reconstructions"
    title += "" if predictor.reconstructs_means else " from a draw of q(z|x)"
    return grids.captioned(tables, title, [], captions)


def samples(predictor: Predictor) -> Figure:
    """Draw 100 means of p(x|z), z from the prior, as 10 x 10 (Kıvrıl 2021)."""
    images = torch.cat([*predictor.generate(100)])
    return grids.picture(grids.grid(images, 10), "Samples: means of p(x|z), z from the prior")


def samples_from_mixture(predictor: Predictor) -> Figure:
    """Draw the same with z from a Gaussian mixture fitted to training codes (Ghosh et al. 2020)."""
    if len(predictor.datamodule.splits.train) < 2:
        raise NotApplicable("a mixture needs 2 training images")
    images = torch.cat([*predictor.generate_from_mixture(COMPONENTS, 100)])
    title = f"Samples: means of p(x|z), z from {COMPONENTS} Gaussians fitted to training codes"
    return grids.picture(grids.grid(images, 10), title)


def losses(predictor: Predictor) -> Figure:
    """Draw elbo, distortion and rate by epoch, training and validation (documents 000, 002)."""
    if not predictor.epochs:
        raise NotApplicable("the run's last checkpoint records no epoch")
    return curves.loss_curves(predictor.epochs, predictor.model.metric_names(predictor.datamodule.pixels))


def rates(predictor: Predictor) -> Figure:
    """Draw the rate of each latent, and mark the active ones."""
    rate, variance = predictor.rates(), posterior.variance_of_means(predictor.codes(predictor.split).mean)
    active = int((variance > posterior.ACTIVE_VARIANCE).sum())
    title = f"{active} of {len(rate)} latents active (variance of the posterior mean > {posterior.ACTIVE_VARIANCE})"
    of = f"Rate of each latent, {rate.sum():.1f} nats in all"
    if not predictor.has_standard_prior:
        of = "Rate of each latent against a Gaussian with the moments of the prior"
    return latents.rate_bars(rate, variance, f"{of}. {title}")


def scatter(predictor: Predictor) -> Figure:
    """Draw posterior means by class: both latents where there are two, the first two principal components of more."""
    codes = predictor.codes(predictor.split)
    points, names = codes.mean, ("latent 0", "latent 1")
    title = f"Posterior means of the {predictor.split} split"
    if points.shape[1] == 1:
        points, names = torch.stack([points[:, 0], codes.scale[:, 0]], 1), ("latent 0", "standard deviation of q(z|x)")
    elif points.shape[1] > 2:
        if len(points) < 2:
            raise NotApplicable("principal components need 2 images")
        axes, _, shares = posterior.principal_directions(points, 2)
        points = (points - points.mean(0)) @ axes.T
        names = tuple(f"PC {i} ({100 * part:.0f} %)" for i, part in enumerate(shares.tolist(), 1))
        title += f": first two principal components of {codes.mean.shape[1]} latents"
    return latents.scatter(points, codes.label, predictor.datamodule.pool.classes, title, names)


def histogram(predictor: Predictor) -> Figure:
    """Draw codes of the two latents with the largest rate as a 2-D histogram beside the prior.

    Yin & Wang (2023) pick latents by the variance of sampled codes, which is 1 for a collapsed latent too; its rate is
    0.
    """
    pair = best_latents(predictor, 2)
    if len(pair) < 2:
        raise NotApplicable("a 2-D histogram needs 2 latents")
    z = predictor.codes(predictor.split).sample(predictor.seed)[:, pair]
    if predictor.has_standard_prior:
        return latents.against_prior(z, tuple(pair), [posterior.agreement(c) for c in z.T], posterior.misplaced(z))
    prior = predictor.prior_draws()[:, pair]
    agreements = [posterior.agreement(code, own) for code, own in zip(z.T, prior.T, strict=True)]
    fitted = not predictor.model.has_elbo
    return latents.against_prior(z, tuple(pair), agreements, posterior.misplaced(z, prior), prior, fitted=fitted)


def class_means(predictor: Predictor) -> Figure:
    """Draw the decoded mean of each class's posterior means; of two classes how they differ, else from that of all."""
    codes, classes = predictor.codes(predictor.split), predictor.datamodule.pool.classes
    present = [label for label in codes.label.unique().tolist() if label >= 0]
    if not present:
        raise NotApplicable("the images have no class labels")
    names = [classes[label] for label in present]
    z = [codes.mean[codes.label == label].mean(0) for label in present]
    decoded = torch.cat([*predictor.decode(torch.stack([*z, codes.mean[codes.label >= 0].mean(0)]))])
    images, centre = decoded[:-1], decoded[-1]
    differences = images[1:] - images[:1] if len(present) == 2 else images - centre
    reach = differences.abs().max().clamp_min(1e-6).item()
    shown = grids.signed(differences / reach)
    if len(present) == 2:
        title = f"Decoded mean of the codes of {names[0]} and {names[1]}, and where {names[1]} is higher (red) or lower"
        table = torch.cat([grids.in_colour(images), shown])[None]
        figure = grids.captioned([table], title, [], [[*names, f"{names[1]} − {names[0]}"]])
    else:
        columns = min(max(CLASSES_A_ROW, math.isqrt(2 * len(present))), MOST_A_ROW)
        title = (
            "Decoded mean of the codes of each class, over its difference from that of all: "
            f"red is higher, blue lower, by up to {reach:.2f} of the full range"
        )
        figure = grids.stacked({"mean": images, "difference": shown}, title, names, columns)
    grids.add_scale(figure, reach)
    return figure


def neighbours(predictor: Predictor) -> Figure:
    """Draw samples over their nearest training images: copies would show."""
    drawn = torch.cat([*predictor.generate(32)])
    module = predictor.datamodule
    _, place = distances.nearest(drawn, module.seen, module.splits.train)
    title = "Samples, each row over the training images nearest to them (root mean square over pixels)"
    return grids.picture(grids.stacks([drawn, module.seen(place)]), title)
