"""Pictures along paths through the latent space: planes, traversals, principal directions, interpolations."""

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

from src.exploration import grids
from src.exploration.overview import best_latents, measure_of_latents, originals_of
from src.metrics import posterior
from src.models.predictor import Predictor
from src.system.errors import NotApplicable

QUANTILES = torch.linspace(0.05, 0.95, 7)  # Yin & Wang 2023
SIDE = 20  # pictures along a side of the manifold
ROWS, DIRECTIONS = 10, 8  # latents in the figure of traversals, rows in that of directions
WEAK = 0.5  # nats of the largest rate below which no latent alone shows much
PRIORS = "quantiles of the prior"
PAIRS, STEPS = 4, 8  # interpolations, and pictures in each


def manifold(predictor: Predictor) -> Figure:
    """Draw the decoded plane of two latents, 20 x 20 at quantiles of the prior (Kingma & Welling 2014, figure 4)."""
    if (dims := predictor.model.latent_dim) != 2:
        raise NotApplicable(f"only a model with 2 latents has a plane to draw whole, this one has {dims}")
    predictor.model.check_codes()
    across, upwards = predictor.prior_quantiles((torch.arange(SIDE) + 0.5) / SIDE).T
    up, right = torch.meshgrid(upwards.flip(0), across, indexing="ij")
    below, beside = (
        [f"{z:+.2f}" if i % 3 == 0 else "" for i, z in enumerate(steps.tolist())] for steps in (across, upwards)
    )
    prior = "the standard normal" if predictor.has_standard_prior else "the prior, of each latent alone"
    title = f"Decoded plane: means of p(x|z) at quantiles of {prior}"
    table = decode_table(predictor, torch.stack([right, up], -1))
    return grids.labelled(table, title, beside[::-1], below, "latent 0", "latent 1")


def directions(predictor: Predictor) -> Figure:
    """Draw 1 x 7 pictures along each principal direction of the training codes, from their mean to ±2 deviations.

    Where the rate is spread over hundreds of latents, each alone changes nothing visible; their directions do.
    """
    codes = predictor.codes("train").mean
    if len(codes) < 2:
        raise NotApplicable("principal directions need 2 training images")
    axes, spread, shares = posterior.principal_directions(codes, DIRECTIONS)
    steps = torch.linspace(-2, 2, len(QUANTILES))
    z = codes.mean(0) + steps[None, :, None] * (spread[:, None] * axes)[:, None]
    rows = [f"direction {i}\n({100 * share:.0f} % of variance)" for i, share in enumerate(shares.tolist(), 1)]
    columns = [f"{round(step, 1) + 0:+.1f}" for step in steps.tolist()]
    title = f"Principal directions of {len(codes):,} training codes, from their mean"
    return grids.labelled(decode_table(predictor, z), title, rows, columns, "standard deviations")


def traversals(predictor: Predictor) -> Figure:
    """Draw 1 x 7 pictures along each latent with a large rate, the others at their mean (Yin & Wang 2023: at 0)."""
    chosen = best_latents(predictor, ROWS)
    steps = predictor.prior_quantiles(QUANTILES)
    z = _mean_code(predictor).repeat(len(chosen), len(steps), 1)
    for row, latent in enumerate(chosen):
        z[row, :, latent] = steps[:, latent]
    measure, name = measure_of_latents(predictor)
    said = "{:.2f} nats" if name == "rate" else "variance {:.2f}"
    rows = [f"latent {latent}\n({said.format(measure[latent])})" for latent in chosen]
    which, prior = ("normal quantiles", "N(0, 1)") if predictor.has_standard_prior else (PRIORS, "the prior")
    title = f"Traversals: one latent at {which}, the others at their mean{_weak(measure, name)}"
    return grids.labelled(decode_table(predictor, z), title, rows, _quantile_names(), f"quantile of {prior}")


def plane(predictor: Predictor) -> Figure:
    """Draw 7 x 7 pictures along two latents with a large rate, the others at their mean (Yin & Wang 2023: at 0)."""
    pair = best_latents(predictor, 2)
    if len(pair) < 2:
        raise NotApplicable("a plane needs 2 latents")
    steps = predictor.prior_quantiles(QUANTILES)
    z = _mean_code(predictor).repeat(len(steps), len(steps), 1)
    z[..., pair[0]] = steps[:, pair[0]]
    z[..., pair[1]] = steps[:, pair[1]].flip(0)[:, None]
    names = _quantile_names()
    measure, name = measure_of_latents(predictor)
    which = f"The two latents with the largest {name}" if len(measure) > 2 else "Both latents"
    quantiles = "normal quantiles" if predictor.has_standard_prior else PRIORS
    title = f"{which} at {quantiles}{', the others at their mean' if len(measure) > 2 else ''}{_weak(measure, name)}"
    across, up = (f"quantile of latent {latent}" for latent in pair)
    return grids.labelled(decode_table(predictor, z), title, names[::-1], names, across, up)


def interpolations(predictor: Predictor) -> Figure:
    """Draw decoded steps between the posterior means of two images, on a straight line and on an arc."""
    originals = originals_of(predictor, 2 * PAIRS)
    if len(originals) < 2:
        raise NotApplicable("interpolation needs 2 images")
    half = len(originals) // 2  # the first is paired with one from the middle: folders are sorted by class
    codes, _ = predictor.posterior(originals)
    rows, names = [], []
    for i, j in zip(range(half), range(half, 2 * half), strict=True):
        for name, path in (("line", linear), ("arc", spherical)):
            steps = predictor.decode(path(codes[i], codes[j], STEPS))
            rows.append(torch.cat([originals[i][None], *steps, originals[j][None]]))
            names.append(name)
    steps = [f"{step:.2f}" for step in torch.linspace(0, 1, STEPS).tolist()]
    title = f"Between two {predictor.split} images, outermost: a straight line and an arc between their posterior means"
    return grids.labelled(torch.stack(rows), title, names, ["image", *steps, "image"], "way from one to the other")


def linear(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Return codes on the straight line from ``a`` to ``b`` ``[D]``: ``[steps, D]``."""
    return torch.lerp(a, b, torch.linspace(0, 1, steps)[:, None])


def spherical(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Return codes on the arc from ``a`` to ``b`` ``[D]``, their lengths interpolated: ``[steps, D]``.

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


def decode_table(predictor: Predictor, z: Tensor) -> Tensor:
    """Decode codes ``[R, K, D]`` to the means of p(x|z), ``[R, K, C, H, W]`` on the CPU."""
    return torch.cat([*predictor.decode(z.flatten(0, 1))]).unflatten(0, z.shape[:2])


def _mean_code(predictor: Predictor) -> Tensor:
    """Return the mean of the posterior means of the split, ``[D]``: a typical image, which 0 need not be."""
    return predictor.codes(predictor.split).mean.mean(0)


def _weak(measure: Tensor, name: str) -> str:
    """Return what to add to a title where latents have rates ``[D]``, and none a large one."""
    if name != "rate" or measure.max() >= WEAK:
        return ""
    return f". None carries more than {measure.max():.1f} nats, so each alone shows little: see directions"


def _quantile_names() -> list[str]:
    return [f"{quantile:.2f}" for quantile in QUANTILES.tolist()]
