"""Scores of single pictures: their cost in nats, ranked among validation images, and the nearest training image."""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from src.exploration import grids
from src.exploration.own_images import COLUMNS, Pictures
from src.metrics.distances import nearest
from src.metrics.reconstruction import psnr
from src.models.predictor import Costs, Predictor

SAMPLES = 4  # draws from each posterior; with a single one, an elbo varies by nats
REFERENCES = 500  # validation images that a picture is ranked among, and training images for the usual brightness
MOST_CLASSES = 4  # each of which has a row of nearest training images
SHOWN = 20  # pictures listed on the terminal
NOT_LIKE = 4  # standard deviations of brightness beyond which pictures are unlike training images
CAUTION = "images with more detail cost more nats, whatever they show: a rank is no diagnosis"


class Scores(NamedTuple):
    """What a model says of N pictures."""

    costs: Costs  # of each
    rank: Tensor  # [N], share of validation images that cost fewer nats
    psnr: Tensor  # [N], dB, of the reconstruction
    reconstruction: Tensor  # [N, C, H, W]
    nearest: Tensor  # [N], index in the pool of the nearest training image
    distance: Tensor  # [N], to that image, root mean square over pixels
    nearest_of: dict[str, Tensor]  # by class where a training has two to four: [N], that of this class


def scores(predictor: Predictor, x: Tensor) -> Scores:
    """Score pictures ``[N, C, H, W]``, as the model sees them, on the CPU."""
    module = predictor.datamodule
    costs = predictor.costs(x, SAMPLES)
    validation = torch.cat([batch.x.cpu() for batch, _ in predictor.batches("val", REFERENCES)])
    among = predictor.costs(validation, SAMPLES).total.sort().values
    drawn = torch.cat([*predictor.reconstruct(x.split(predictor.batch_size))])
    distance, place = nearest(x, module.seen, module.splits.train)
    rank = torch.searchsorted(among, costs.total) / len(among)
    return Scores(costs, rank, psnr(drawn, x), drawn, place, distance, _nearest_of(predictor, x))


def _nearest_of(predictor: Predictor, x: Tensor) -> dict[str, Tensor]:
    """Return the nearest training image of each class, where there are a few classes: a normal film to compare with."""
    module = predictor.datamodule
    pool, train = module.pool, module.splits.train
    present = [label for label in pool.labels[train].unique().tolist() if label >= 0]
    if not 2 <= len(present) <= MOST_CLASSES:
        return {}
    of = {label: train[pool.labels[train] == label] for label in present}
    return {pool.classes[label]: nearest(x, module.seen, index)[1] for label, index in of.items()}


def table(predictor: Predictor, own: Pictures, scores: Scores) -> pd.DataFrame:
    """Return one row a picture, with the figure that shows it.

    ``negative_elbo``, ``distortion`` and ``rate`` are in nats (a model without an elbo has the distortion alone),
    ``rank`` goes from 0 to 1, ``psnr`` is in dB.
    """
    nats = {"negative_elbo": scores.costs.total, "distortion": scores.costs.distortion, "rate": scores.costs.rate}
    pool = predictor.datamodule.pool
    place = scores.nearest.tolist()
    return pd.DataFrame(
        {
            "file": own.names,
            "figure": [f"{page}.png" for page, here in own.pages("pictures") for _ in own.names[here]],
            "inverted": own.inverted,
            **{name: nats[name].numpy() for name in (nats if predictor.model.has_elbo else ["distortion"])},
            "rank": scores.rank.numpy(),
            "psnr": scores.psnr.numpy(),
            "nearest": [pool.names[i] if pool.names else str(i) for i in place],
            "nearest_class": [pool.classes[i] if i >= 0 else "" for i in pool.labels[place].tolist()],
            "nearest_distance": scores.distance.numpy(),
        }
    )


def look_like_negatives(predictor: Predictor, own: Pictures) -> str | None:
    """Return a hint where pictures are as bright as negatives of the training images, and unlike those themselves."""
    if own.inverted:
        return None
    pool, index = predictor.datamodule.pool.images, predictor.datamodule.spread("train", REFERENCES)
    usual = pool[index].float().flatten(1).mean(1) / 255
    theirs, ours, spread = own.levels.float().mean().item() / 255, usual.mean().item(), usual.std(correction=0).item()
    if abs(theirs - ours) <= NOT_LIKE * spread or abs(theirs - (1 - ours)) >= abs(theirs - ours):
        return None
    return (
        f"the pictures have a mean brightness of {theirs:.2f}, training images one of {ours:.2f} ± {spread:.2f}: "
        "they look like negatives of those, invert=true inverts them"
    )


def words(predictor: Predictor, rows: pd.DataFrame) -> str:
    """Write the costliest pictures as a table for the terminal."""
    by = "negative_elbo" if predictor.model.has_elbo else "distortion"
    costliest = rows.sort_values(by, ascending=False).head(SHOWN)
    width, name = max(map(len, costliest.file)), predictor.model.cost_name(predictor.datamodule.pixels)
    several = rows.figure.nunique() > 1
    lines = [
        f"  {row.file:<{width}}  {getattr(row, by):12,.1f} nats (above {100 * row.rank:3.0f} % of validation images)  "
        f"PSNR {row.psnr:5.1f} dB{f'  {row.figure}' if several else ''}"
        for row in costliest.itertuples()
    ]
    more = f", the {len(lines)} highest of {len(rows)}" if len(rows) > len(lines) else ""
    inverted = " inverted" if rows.inverted.all() else ""
    return "\n".join([f"{name} of each{inverted} picture{more}:", *lines, CAUTION])


def draw(predictor: Predictor, own: Pictures, scores: Scores) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure of each page of pictures.

    Originals over reconstructions, where both differ, and the nearest training images; costs in the captions.
    """
    name = predictor.model.cost_name(predictor.datamodule.pixels)
    costs = zip(scores.costs.total.tolist(), scores.rank.tolist(), strict=True)
    captions = [
        f"{caption}\n{cost:,.1f} nats\n(above {100 * rank:.0f} %)"
        for caption, (cost, rank) in zip(own.captions, costs, strict=True)
    ]
    for page, here in own.pages("pictures"):
        x, drawn = own.x[here], scores.reconstruction[here]
        difference = x - drawn
        reach = difference.abs().max().clamp_min(1e-6)
        rows = {
            "original": x,
            "reconstruction": drawn,
            "difference": grids.signed(difference / reach),
        }
        places = {f"nearest\n{name}": place for name, place in scores.nearest_of.items()} or {"nearest": scores.nearest}
        rows |= {row: predictor.datamodule.seen(place[here]) for row, place in places.items()}
        of = " of each class" if scores.nearest_of else ""
        title = (
            f"Reconstructions{own.remark}, PSNR {scores.psnr[here].mean():.1f} dB. Red: higher than the "
            f"reconstruction, blue: lower, by up to {reach:.2f} of the full range. Below: the nearest training "
            f"image{of}; {name} and the share of validation images where it is lower ({CAUTION})"
        )
        yield page, grids.stacked(rows, title, captions[here], COLUMNS)
