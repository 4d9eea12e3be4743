"""Contrast of the cells of an image: what a model may see in place of pixels."""

import math

from torch import Tensor, hypot
from torch.nn.functional import avg_pool2d, pad

LEAST = 0.001  # mean gradient, in full ranges a pixel, that is shown as 0


def contrast_map(images: Tensor, cells: int) -> Tensor:
    """Return the contrast ``[N, 1, cells, cells]`` in the cells of square images ``[N, C, H, H]`` in [0, 1].

    It is the mean magnitude of the gradient of the grey image, by central differences, on a logarithmic scale: 0.001 of
    the full range a pixel gives 0, the full range 1. It does not depend on brightness.
    """
    grey = pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = (grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]) / 2
    down = (grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]) / 2
    mean = avg_pool2d(hypot(across, down), images.shape[-1] // cells)
    return 1 - (mean + LEAST).log10() / math.log10(LEAST)
