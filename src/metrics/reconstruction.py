"""Similarity of reconstructions to their originals, by torchmetrics."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure, StructuralSimilarityIndexMeasure

SSIM_SIDE = 11  # pixels of SSIM's window (Wang et al. 2004)
MS_SSIM_SIDE = 176  # smallest side whose fifth scale still holds that window: 176 / 2^4
LEAST_ERROR = 1e-10  # mean squared error: an exact reconstruction has 100 dB, so that the mean over images is finite


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio ``[B]`` of images ``[B, C, H, W]`` in [0, 1], in dB, at most 100."""
    error = (images.clamp(0, 1) - originals).square().flatten(1).mean(1)
    return -10 * error.clamp_min(LEAST_ERROR).log10()


class Similarity:
    """Accumulate PSNR (dB), SSIM and MS-SSIM of images in [0, 1] as means over images, batch by batch.

    SSIM needs images of 11 pixels a side, MS-SSIM with its five published scales 176; for smaller ones it is None.

    Args:
        side: the smaller of height and width, pixels.
    """

    def __init__(self, side: int) -> None:
        self.metrics: dict[str, Any] = {"psnr": MeanMetric(nan_strategy="disable")}
        if side >= SSIM_SIDE:
            self.metrics["ssim"] = StructuralSimilarityIndexMeasure(data_range=1.0)
        if side >= MS_SSIM_SIDE:
            self.metrics["ms_ssim"] = MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0)

    def update(self, reconstructions: Tensor, originals: Tensor) -> None:
        """Add a batch of pairs ``[B, C, H, W]``."""
        for name, metric in self.metrics.items():
            if name == "psnr":
                metric.update(psnr(reconstructions, originals))
            else:
                metric.update(reconstructions.clamp(0, 1), originals)

    def compute(self) -> dict[str, float | None]:
        """Return ``psnr``, ``ssim`` and ``ms_ssim``."""
        return {
            name: torch.as_tensor(self.metrics[name].compute()).item() if name in self.metrics else None
            for name in ("psnr", "ssim", "ms_ssim")
        }
