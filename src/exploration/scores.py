"""What a model says of single images: the nats they cost it, beside those of validation images; what they resemble."""

import logging
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from src.metrics.distances import nearest
from src.metrics.reconstruction import psnr
from src.models.objectives import elbo_terms
from src.models.predictor import Predictor
from src.system.console import progress
from src.system.seeds import stream

log = logging.getLogger(__name__)

SAMPLES = 4  # of each posterior: one alone moves an elbo by nats
REFERENCES = 500  # validation images that a picture is ranked among, and training images whose brightness is looked at
SHOWN = 20  # pictures on the terminal
NOT_LIKE = 4  # standard deviations of brightness beyond which pictures are not like training images
MIND = "images with more detail cost more nats, whatever they show: a rank is no diagnosis"


class Scores(NamedTuple):
    """Of N pictures."""

    distortion: Tensor  # [N], nats
    rate: Tensor  # [N], nats
    rank: Tensor  # [N], share of validation images that cost fewer nats
    psnr: Tensor  # [N], dB, of the reconstruction from the posterior mean
    reconstruction: Tensor  # [N, C, H, W]
    nearest: Tensor  # [N], place in the pool of the nearest training image
    distance: Tensor  # [N], to that, root mean square over pixels

    @property
    def negative_elbo(self) -> Tensor:
        """Nats that each picture costs ``[N]``."""
        return self.distortion + self.rate


def scores(predictor: Predictor, x: Tensor) -> Scores:
    """Of pictures ``[N, C, H, W]``, as the model sees them, on the CPU."""
    splits, pool = predictor.datamodule.splits, predictor.datamodule.pool.images
    distortion, rate = _costs(predictor, x)
    unseen = torch.cat([batch.x.cpu() for batch, _ in predictor.batches("val", REFERENCES)])
    usual = sum(_costs(predictor, unseen)).sort().values
    drawn = torch.cat([*predictor.reconstruct(x.split(predictor.batch_size))])
    distance, place = nearest(x, pool, splits.train)
    rank = torch.searchsorted(usual, distortion + rate) / len(usual)
    return Scores(distortion, rate, rank, psnr(drawn, x), drawn, place, distance)


@torch.no_grad()
def _costs(predictor: Predictor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Distortion and rate of images ``[N, C, H, W]``; with the same noise for each, so equal for equal images."""
    parts = []
    for one in progress(x.split(1), "costs of images"):
        image = one.to(predictor.device)
        with stream(predictor.seed, "costs"):
            terms = elbo_terms(image, predictor.model.infer(image, SAMPLES), predictor.model.prior())
        parts.append(torch.cat([terms.distortion, terms.rate]).cpu())
    distortion, rate = torch.stack(parts).double().T
    return distortion, rate


def table(predictor: Predictor, names: list[str], of: Scores) -> pd.DataFrame:
    """One row a picture; ``negative_elbo``, ``distortion`` and ``rate`` in nats, ``rank`` from 0 to 1."""
    pool = predictor.datamodule.pool
    place = of.nearest.tolist()
    return pd.DataFrame(
        {
            "file": names,
            "negative_elbo": of.negative_elbo.numpy(),
            "distortion": of.distortion.numpy(),
            "rate": of.rate.numpy(),
            "rank": of.rank.numpy(),
            "psnr": of.psnr.numpy(),
            "nearest": [pool.names[i] if pool.names else str(i) for i in place],
            "nearest_class": [pool.classes[i] if i >= 0 else "" for i in pool.labels[place].tolist()],
            "nearest_distance": of.distance.numpy(),
        }
    )


def look_like_negatives(predictor: Predictor, x: Tensor) -> str | None:
    """What to say where pictures are as bright as negatives of the training images, and far from those themselves."""
    pool, index = predictor.datamodule.pool.images, predictor.datamodule.spread("train", REFERENCES)
    usual = pool[index].float().flatten(1).mean(1) / 255
    theirs, ours, spread = x.mean().item(), usual.mean().item(), usual.std(correction=0).item()
    if abs(theirs - ours) <= NOT_LIKE * spread or abs(theirs - (1 - ours)) >= abs(theirs - ours):
        return None
    return (
        f"the pictures have a mean brightness of {theirs:.2f}, training images one of {ours:.2f} ± {spread:.2f}: "
        "they look like negatives of those, invert=true turns them"
    )


def words(predictor: Predictor, rows: pd.DataFrame) -> str:
    """The costliest pictures as a table for the terminal."""
    dearest = rows.sort_values("negative_elbo", ascending=False).head(SHOWN)
    width, name = max(map(len, dearest.file)), predictor.model.metric_names(predictor.datamodule.pixels)["elbo"]
    lines = [
        f"  {file:<{width}}  {cost:12,.1f} nats (above {100 * rank:3.0f} % of validation images)  PSNR {db:5.1f} dB"
        for file, cost, rank, db in dearest[["file", "negative_elbo", "rank", "psnr"]].itertuples(index=False)
    ]
    more = f", the {len(lines)} highest of {len(rows)}" if len(rows) > len(lines) else ""
    return "\n".join([f"−{name} of each picture{more}:", *lines, MIND])
