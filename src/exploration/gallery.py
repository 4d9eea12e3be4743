"""Every picture of a trained model: one function a picture, predictor in, figure out.

Training ends with :data:`SHORT`, ``python -m src.explore`` draws them all. A picture that a model or a data set
cannot have raises :class:`NotApplicable`, which says why.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import normalize

from src.data.splits import ImagePool
from src.exploration import curves, grids, latents
from src.exploration.writing import short
from src.metrics import distances, posterior
from src.models.predictor import Predictor
from src.system.errors import UserError
from src.system.files import whole_file
from src.system.keys import KEYS, check

log = logging.getLogger(__name__)

QUANTILES = torch.linspace(0.05, 0.95, 7)  # Yin & Wang 2023
A_ROW, LONGEST = 8, 16  # reconstructions side by side, letters of a name below them
SIDE = 20  # pictures along a side of the manifold
ROWS, DIRECTIONS = 10, 8  # latents in the figure of traversals, rows in that of directions
WEAK = 0.5  # nats of the largest rate below which no latent alone shows much
PAIRS, STEPS = 4, 8  # interpolations, and pictures in each
CLASSES_A_ROW, MOST_A_ROW = 5, 16  # pictures side by side; where the classes are many, as many as there are rows
COMPONENTS = 10  # of the mixture


class NotApplicable(Exception):
    """There is no such picture of this model or data, and why."""


def whole(batches: Iterable[Tensor]) -> Tensor:
    """Batches as one tensor."""
    return torch.cat([*batches])


def reconstructions(predictor: Predictor, count: int = 32) -> Figure:
    """Images of the split, with class and file where they have them, over reconstructions from the posterior mean."""
    pool, index = predictor.datamodule.pool, predictor.datamodule.spread(predictor.split, count).tolist()
    originals = originals_of(predictor, count)
    drawn = whole(predictor.reconstruct([originals]))
    columns = min(A_ROW, len(originals))
    tables, captions = [], []
    for start in range(0, len(originals) // columns * columns, columns):
        here = slice(start, start + columns)
        tables.append(torch.stack([originals[here], drawn[here]]))
        captions.append([_caption(pool, i) for i in index[here]])
    title = f"Originals ({predictor.split} split), each row over its reconstructions"
    return grids.captioned(tables, title, [], captions)


def _caption(pool: ImagePool, i: int) -> str:
    """Class and file of an image, as far as it has them."""
    known = pool.classes[pool.labels[i]] if pool.labels[i] >= 0 else ""
    names = (known, Path(pool.names[i]).name if pool.names else "")
    return "\n".join(short(name, LONGEST) for name in names if name)


def originals_of(predictor: Predictor, count: int) -> Tensor:
    """``count`` images spread evenly over the split, as the model sees them, on the CPU."""
    return whole(batch.x.cpu() for batch, _ in predictor.batches(predictor.split, count))


def samples(predictor: Predictor) -> Figure:
    """100 means of p(x|z), z from the prior, as 10 x 10 (Kıvrıl 2021)."""
    return grids.picture(grids.grid(whole(predictor.generate(100)), 10), "Samples: means of p(x|z), z from the prior")


def samples_from_mixture(predictor: Predictor) -> Figure:
    """The same with z from a Gaussian mixture fitted to training codes (Ghosh et al. 2020)."""
    if len(predictor.datamodule.splits.train) < 2:
        raise NotApplicable("a mixture needs 2 training images")
    title = f"Samples: means of p(x|z), z from {COMPONENTS} Gaussians fitted to training codes"
    return grids.picture(grids.grid(whole(predictor.generate_from_mixture(COMPONENTS, 100)), 10), title)


def losses(predictor: Predictor) -> Figure:
    """Elbo, distortion and rate by epoch, training and validation (ECE 175B; Kıvrıl 2021)."""
    if not predictor.epochs:
        raise NotApplicable("the run's last checkpoint records no epoch")
    return curves.loss_curves(predictor.epochs, predictor.model.metric_names(predictor.datamodule.pixels))


def rates(predictor: Predictor) -> Figure:
    """Rate of each latent, and which are active."""
    codes = predictor.codes(predictor.split)
    rate, variance = posterior.rates(codes.mean, codes.scale), posterior.variance_of_means(codes.mean)
    active = int((variance > posterior.ACTIVE_VARIANCE).sum())
    title = f"{active} of {len(rate)} latents active (variance of the posterior mean > {posterior.ACTIVE_VARIANCE})"
    return latents.rate_bars(rate, variance, f"Rate of each latent, {rate.sum():.1f} nats in all. {title}")


def scatter(predictor: Predictor) -> Figure:
    """Posterior means by class: as they are for two latents, their first two principal components otherwise."""
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


def manifold(predictor: Predictor) -> Figure:
    """The decoded plane of two latents, 20 x 20 at normal quantiles (Kingma & Welling 2014, figure 4)."""
    if predictor.model.latent_dim != 2:
        raise NotApplicable(f"only a model with 2 latents has a plane to draw whole, this one has {_dims(predictor)}")
    steps = Normal(0.0, 1.0).icdf((torch.arange(SIDE) + 0.5) / SIDE)
    up, right = torch.meshgrid(steps.flip(0), steps, indexing="ij")
    images = whole(predictor.decode(torch.stack([right, up], -1).flatten(0, 1)))
    labels = [f"{z:+.2f}" if i % 3 == 0 else "" for i, z in enumerate(steps.tolist())]
    title = "Decoded plane: means of p(x|z) at quantiles of the standard normal"
    table = images.unflatten(0, (SIDE, SIDE))
    return grids.labelled(table, title, labels[::-1], labels, "latent 0", "latent 1")


def histogram(predictor: Predictor) -> Figure:
    """Codes of the two latents with the largest rate, as a 2-D histogram beside the standard normal (Yin & Wang 2023).

    By rate, not by the variance of sampled codes as the document picks them: that is 1 for a collapsed latent too.
    """
    pair = _best(predictor, 2)
    if len(pair) < 2:
        raise NotApplicable("a 2-D histogram needs 2 latents")
    z = predictor.codes(predictor.split).sample(predictor.seed)[:, pair]
    return latents.against_normal(z, tuple(pair), [posterior.agreement(c) for c in z.T], posterior.misplaced(z))


def directions(predictor: Predictor) -> Figure:
    """1 x 7 pictures along each principal direction of the training codes, from their mean to 2 deviations each way.

    Where the rate is spread over hundreds of latents each alone changes nothing that is seen; their directions do.
    """
    codes = predictor.codes("train").mean
    if len(codes) < 2:
        raise NotApplicable("principal directions need 2 training images")
    centre, (axes, spread, shares) = codes.mean(0), posterior.principal_directions(codes, DIRECTIONS)
    steps = torch.linspace(-2, 2, len(QUANTILES))
    z = centre + steps[None, :, None] * (spread[:, None] * axes)[:, None]
    rows = [f"direction {i}\n({100 * share:.0f} % of variance)" for i, share in enumerate(shares.tolist(), 1)]
    title = f"Principal directions of {len(codes):,} training codes, from their mean"
    return grids.labelled(
        _decode_table(predictor, z),
        title,
        rows,
        [f"{round(s, 1) + 0:+.1f}" for s in steps.tolist()],
        "standard deviations",
    )


def traversals(predictor: Predictor) -> Figure:
    """1 x 7 pictures along each of the latents with the largest rate, others at the mean (Yin & Wang 2023: at 0)."""
    chosen = _best(predictor, ROWS)
    steps = Normal(0.0, 1.0).icdf(QUANTILES)
    z = _mean_code(predictor).repeat(len(chosen), len(steps), 1)
    for row, latent in enumerate(chosen):
        z[row, :, latent] = steps
    rate = posterior.rates(*predictor.codes(predictor.split)[:2])
    rows = [f"latent {latent}\n({rate[latent]:.2f} nats)" for latent in chosen]
    title = f"Traversals: one latent at normal quantiles, the others at their mean{_weak(rate)}"
    return grids.labelled(_decode_table(predictor, z), title, rows, _quantile_names(), "quantile of N(0, 1)")


def plane(predictor: Predictor) -> Figure:
    """7 x 7 pictures along the two latents with the largest rate, the others at their mean (Yin & Wang 2023: at 0)."""
    pair = _best(predictor, 2)
    if len(pair) < 2:
        raise NotApplicable("a plane needs 2 latents")
    steps = Normal(0.0, 1.0).icdf(QUANTILES)
    z = _mean_code(predictor).repeat(len(steps), len(steps), 1)
    z[..., pair[0]] = steps
    z[..., pair[1]] = steps.flip(0)[:, None]
    names = _quantile_names()
    weak = _weak(posterior.rates(*predictor.codes(predictor.split)[:2]))
    title = f"The two latents with the largest rate at normal quantiles, the others at their mean{weak}"
    across, up = (f"quantile of latent {latent}" for latent in pair)
    return grids.labelled(_decode_table(predictor, z), title, names[::-1], names, across, up)


def _mean_code(predictor: Predictor) -> Tensor:
    """The mean of the posterior means of the split, ``[D]``: a typical image, which 0 need not be."""
    return predictor.codes(predictor.split).mean.mean(0)


def _weak(rate: Tensor) -> str:
    """What to say where no latent ``[D]`` carries much."""
    if rate.max() >= WEAK:
        return ""
    return f". None carries more than {rate.max():.1f} nats, so each alone shows little: see directions"


def _quantile_names() -> list[str]:
    return [f"{quantile:.2f}" for quantile in QUANTILES.tolist()]


def _decode_table(predictor: Predictor, z: Tensor) -> Tensor:
    return whole(predictor.decode(z.flatten(0, 1))).unflatten(0, z.shape[:2])


def interpolations(predictor: Predictor) -> Figure:
    """Decoded steps between the posterior means of two images, on a straight line and on an arc."""
    originals = originals_of(predictor, 2 * PAIRS)
    if len(originals) < 2:
        raise NotApplicable("interpolation needs 2 images")
    half = len(originals) // 2  # the first is paired with one from the middle: folders are sorted by class
    with torch.no_grad():
        codes = predictor.model.posterior(originals.to(predictor.device)).mean.cpu()
    rows, names = [], []
    for i, j in zip(range(half), range(half, 2 * half), strict=True):
        for name, path in (("line", linear), ("arc", spherical)):
            decoded = whole(predictor.decode(path(codes[i], codes[j], STEPS)))
            rows.append(torch.cat([originals[i][None], decoded, originals[j][None]]))
            names.append(name)
    steps = [f"{step:.2f}" for step in torch.linspace(0, 1, STEPS).tolist()]
    title = f"Between two {predictor.split} images, outermost: a straight line and an arc between their posterior means"
    return grids.labelled(torch.stack(rows), title, names, ["image", *steps, "image"], "way from one to the other")


def linear(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Codes on the straight line from ``a`` to ``b`` ``[D]``: ``[steps, D]``."""
    return torch.lerp(a, b, torch.linspace(0, 1, steps)[:, None])


def spherical(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Codes on the arc from ``a`` to ``b`` ``[D]``, their lengths interpolated: ``[steps, D]``.

    A straight line between typical codes passes nearer to the origin than codes do (White 2016, arXiv 1609.04468).
    Opposite or vanishing codes have no arc: they get the line.
    """
    t = torch.linspace(0, 1, steps)[:, None]
    unit_a, unit_b = normalize(a, dim=0), normalize(b, dim=0)
    angle = torch.acos((unit_a @ unit_b).clamp(-1, 1))
    if angle.sin().abs() < 1e-4 or min(a.norm(), b.norm()) == 0:
        return linear(a, b, steps)
    direction = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / angle.sin()
    return direction * torch.lerp(a.norm(), b.norm(), t)


def class_means(predictor: Predictor) -> Figure:
    """The decoded mean of each class's posterior means, and how it differs from that of all images."""
    codes, classes = predictor.codes(predictor.split), predictor.datamodule.pool.classes
    present = [label for label in codes.label.unique().tolist() if label >= 0]
    if not present:
        raise NotApplicable("the images have no class labels")
    z = torch.stack([codes.mean[codes.label == label].mean(0) for label in present])
    *images, centre = whole(predictor.decode(torch.cat([z, codes.mean[codes.label >= 0].mean(0, keepdim=True)])))
    images = torch.stack(images)
    columns = min(max(CLASSES_A_ROW, math.isqrt(2 * len(present))), MOST_A_ROW)
    rows = range(0, len(present), columns)
    differences = images - centre
    reach = differences.abs().max().clamp_min(1e-6)
    stack = [grids.in_colour(images), grids.signed(differences / reach)]
    tables = [torch.stack([side[start : start + columns] for side in stack]) for start in rows]
    blank = images.new_ones(2, columns - tables[-1].shape[1], *tables[-1].shape[2:])
    if len(tables) > 1:
        tables[-1] = torch.cat([tables[-1], blank], 1)
    names = [[classes[label] for label in present[start : start + columns]] for start in rows]
    title = (
        "Decoded mean of the codes of each class, over its difference from that of all: "
        f"red is brighter, blue darker, by up to {reach:.2f} of the full range"
    )
    return grids.captioned(tables, title, ["mean", "difference"], names)


def neighbours(predictor: Predictor) -> Figure:
    """Samples over their nearest training images: copies would show."""
    drawn = whole(predictor.generate(32))
    pool, train = predictor.datamodule.pool.images, predictor.datamodule.splits.train
    _, place = distances.nearest(drawn, pool, train)
    title = "Samples, each row over the training images nearest to them (root mean square over pixels)"
    return grids.picture(grids.stacks([drawn, pool[place] / 255]), title)


PICTURES: dict[str, Callable[[Predictor], Figure]] = {
    "reconstructions": reconstructions,
    "samples": samples,
    "losses": losses,
    "samples_from_mixture": samples_from_mixture,
    "rates": rates,
    "scatter": scatter,
    "manifold": manifold,
    "histogram": histogram,
    "directions": directions,
    "traversals": traversals,
    "plane": plane,
    "interpolations": interpolations,
    "class_means": class_means,
    "neighbours": neighbours,
}
SHORT = ("reconstructions", "samples", "losses")  # what training ends with


def choose(wanted: str | Sequence[str]) -> list[str]:
    """Names of pictures from ``all``, one name or several.

    Raises:
        UserError: there is no such picture.
    """
    names = [wanted] if isinstance(wanted, str) else [*wanted]
    check("figures", wanted if isinstance(wanted, str) else names, KEYS["explore"]["figures"])
    return [*PICTURES] if wanted == "all" else names


def draw(predictor: Predictor, names: Iterable[str], explicit: bool) -> Iterator[tuple[str, Figure]]:
    """Name and figure of each picture; one that cannot be is left out with a line, or an error where it was asked for.

    Raises:
        UserError: a picture was asked for by name and cannot be.
    """
    for name in names:
        try:
            yield name, PICTURES[name](predictor)
        except NotApplicable as reason:
            if explicit:
                raise UserError(f"figures={name}: {reason}") from reason
            log.info("no %s: %s", name, reason)


def write(figure: Figure, path: Path) -> None:
    """One figure as a PNG file."""
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight")


def _best(predictor: Predictor, count: int) -> list[int]:
    return posterior.most_informative(posterior.rates(*predictor.codes(predictor.split)[:2]), count)


def _dims(predictor: Predictor) -> int:
    return predictor.model.latent_dim
