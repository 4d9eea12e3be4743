"""Densities of dequantized pixels beside probabilities of the levels that they were: the numbers of one table."""

import math

import pandas as pd

from src.data.pixels import Pixels

BITS = "val/bits_per_dim"  # bits of the images as they are stored, whatever likelihood gives them


def mixed(points: pd.DataFrame) -> bool:
    """Return whether points that are compared in bits have densities as well as probabilities."""
    return points.compared_by.iloc[0] == BITS and points.pixels.nunique() > 1


def as_stored(points: pd.DataFrame) -> pd.DataFrame:
    """Restate the test figures of densities as bounds for the levels, where points are mixed.

    That is log 256 nats a dimension more (Theis et al. 2016, arXiv 1511.01844, section 3.1).
    """
    if not mixed(points):
        return points
    dimensions = points.image_shape.map(lambda shape: math.prod(shape) if isinstance(shape, list) else math.nan)
    more = (math.log(256) * dimensions).where(points.pixels == Pixels.DEQUANTIZED, 0.0)
    return points.assign(test_elbo=points.test_elbo - more, test_distortion=points.test_distortion + more)
