"""Orientation and contrast of cells of an image: what a model may see in place of pixels."""

import math

from torch import Tensor, arange, atan2, cat, hypot, minimum
from torch.nn.functional import avg_pool2d, pad

BINS = 8  # of orientation, in half a turn
MAPS = BINS + 1
FAINT = 0.01  # contrast of a cell, in full ranges a pixel, at which its orientations count half
LEAST = 0.001  # contrast that is shown as 0


def orientation_maps(images: Tensor, cell: int) -> Tensor:
    """Return maps ``[N, 9, H / cell, W / cell]`` in [0, 1] of images ``[N, C, H, W]`` in [0, 1].

    The gradient of the grey image, by central differences, has a magnitude and a direction at each pixel. The first
    eight maps say which share of a cell's magnitude lies along each of eight directions, as square roots, whose spread
    hardly depends on their mean: 22.5 degrees apart, without sign, each pixel shared between the two next to its own.
    The shares of a cell without contrast are equal. The ninth is the mean magnitude on a logarithmic scale from 0.001
    to 1. No map depends on brightness, and the first eight hardly on contrast. Histograms of oriented gradients are of
    this kind (Dalal & Triggs 2005, doi 10.1109/CVPR.2005.177).
    """
    grey = pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = (grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]) / 2
    down = (grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]) / 2
    magnitude = hypot(across, down)
    place = atan2(down, across) * (BINS / math.pi) - arange(BINS, device=images.device)[:, None, None]
    apart = place.remainder(BINS)
    near = (1 - minimum(apart, BINS - apart)).clamp_min(0)
    contrast = avg_pool2d(magnitude, cell)
    shares = (avg_pool2d(magnitude * near, cell) + FAINT / BINS) / (contrast + FAINT)
    return cat([shares.sqrt(), 1 - (contrast + LEAST).log10() / math.log10(LEAST)], 1)
