"""What a model says of images, before it is compared with what it says of normal ones."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d
from torchmetrics.functional.image import structural_similarity_index_measure

from src.data.pixels import Pixels
from src.detection.distances import flat
from src.metrics.reconstruction import SSIM_SIDE
from src.metrics.simple_features import png_bytes
from src.models.gaussians import PixelwiseGaussianLikelihood
from src.models.predictor import Predictor
from src.system.console import progress

RESIDUAL, HEAT = 16, 64  # places along a side that residuals and heat maps keep at most
LEAST = 1e-6  # variance of pixels in the range 0 to 1
NATS = 8 * np.log(2)  # of a byte


class Measures(NamedTuple):
    """Numbers of N images. Errors are of the reconstruction from the posterior mean."""

    numbers: dict[str, np.ndarray]  # [N] by name, higher is worse: scores that need no normal images
    residual: np.ndarray  # [N, R], mean errors of places on a grid
    heat: np.ndarray  # float32 [N, h, w], squared errors of places, over the variance that the model predicts
    code: np.ndarray | None  # [N, D], posterior means where there are such


def measure(predictor: Predictor, levels: Tensor, samples: int) -> Measures:
    """Measure uint8 images ``[N, C, H, W]``, on the CPU; what is said of one does not depend on the others.

    With ``samples`` of each posterior their costs are measured too; 0 leaves out the costs, the slowest part.
    """
    x = predictor.datamodule.scale_alone(levels, predictor.seed)
    batches = progress(x.split(predictor.batch_size), "errors of images")
    parts = [_of_batch(predictor, some) for some in batches]
    numbers = {name: np.concatenate([part.numbers[name] for part in parts]) for name in parts[0].numbers}
    code = None if parts[0].code is None else np.concatenate([part.code for part in parts])
    if samples:
        numbers = _costs(predictor, x, levels, samples) | numbers
    residual, heat = (np.concatenate([getattr(part, name) for part in parts]) for name in ("residual", "heat"))
    return Measures(numbers, residual, heat, code)


def _costs(predictor: Predictor, x: Tensor, levels: Tensor, samples: int) -> dict[str, np.ndarray]:
    """Return what images cost, in nats, and without what a PNG of them would (Serra et al. 2020, arXiv 1909.11480)."""
    costs = predictor.costs(x, samples)
    of_pixels = predictor.datamodule.pixels is not Pixels.FEATURES
    found = {predictor.model.cost_name(predictor.datamodule.pixels): costs.total}
    if predictor.model.has_elbo:
        found |= {f"bound of {samples} samples": costs.bound, "distortion": costs.distortion, "rate": costs.rate}
    if of_pixels:
        seen = (x * 255).byte() if predictor.datamodule.pixels is Pixels.BINARY else levels
        found["cost − PNG"] = costs.total - NATS * torch.from_numpy(png_bytes(seen))
    return {name: values.numpy() for name, values in found.items()}


@torch.no_grad()
def _of_batch(predictor: Predictor, x: Tensor) -> Measures:
    mean, variance = _expected(predictor, x)
    error = x - mean
    side = x.shape[-1]
    weighed = error**2 / (1.0 if variance is None else variance.clamp_min(LEAST))
    of_pixels = predictor.datamodule.pixels is not Pixels.FEATURES
    numbers = {"squared error": (error**2).flatten(1).mean(1)}
    if variance is not None:
        numbers["error / predicted variance"] = weighed.flatten(1).mean(1)
    if of_pixels:
        numbers |= _of_pixels(x, mean)
    heat = weighed.mean(1, keepdim=True)
    grid, places = min(RESIDUAL, side), min(HEAT, side)
    code = predictor.posterior(x)[0] if predictor.model.has_codes else None
    return Measures(
        {name: values.double().numpy() for name, values in numbers.items()},
        flat(adaptive_avg_pool2d(error, grid)),
        adaptive_avg_pool2d(_blurred(heat) if of_pixels else heat, places)[:, 0].numpy(),
        None if code is None else code.double().numpy(),
    )


def _of_pixels(x: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """Return scores ``[N]`` of errors between images and expectations that only pixels have."""
    error = x - mean
    local = _blurred(x**2) - _blurred(x) ** 2
    found = {
        "error / own contrast": (error**2).flatten(1).mean(1) / local.flatten(1).mean(1).clamp_min(LEAST),
        "brighter than expected": (_blurred(error).clamp_min(0) ** 2).flatten(1).mean(1),
    }
    if min(x.shape[-2:]) >= SSIM_SIDE:
        similarity = structural_similarity_index_measure(mean.clamp(0, 1), x, data_range=1.0, reduction="none")
        found["1 − SSIM"] = 1 - similarity
    return found


def _expected(predictor: Predictor, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return means ``[N, C, H, W]`` of p(x|z) at the posterior mean, and variances where those of pixels are predicted.

    Where an image has no code, z is a draw, with the same noise for each image.
    """
    if not predictor.model.has_codes:
        return torch.cat([next(predictor.reconstruct([one])) for one in x.split(1)]), None
    predicts = isinstance(predictor.model.likelihood, PixelwiseGaussianLikelihood)
    means, variances = [], []
    for likelihood in predictor.likelihoods(predictor.posterior(x)[0]):
        means.append(likelihood.mean.cpu())
        if predicts:
            variances.append(likelihood.variance.cpu())
    return torch.cat(means), torch.cat(variances) if predicts else None


def _blurred(images: Tensor) -> Tensor:
    """Return means ``[N, C, H, W]`` over squares of about an eighth of a side, and at least 3 pixels."""
    reach = min(max(1, images.shape[-1] // 16), images.shape[-1] // 2)
    return avg_pool2d(images, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)
