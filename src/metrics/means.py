"""Means over the images of a split, exact for any batch sizes and number of processes."""

import torch
from torch import Tensor
from torchmetrics import Metric


class ExampleMean(Metric):
    """The mean over all images of a vector of ``features`` numbers an image.

    Sums and counts are kept in float64 and added over processes, so every image has the same weight, also in a last,
    smaller batch (Kıvrıl 2021 divides by batches times batch size instead).
    """

    full_state_update = False
    sums: Tensor
    count: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(features, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add a batch ``[B, features]``."""
        self.sums += values.sum(0, dtype=torch.float64)
        self.count += len(values)

    def compute(self) -> Tensor:
        """Return the mean ``[features]`` in float64."""
        return self.sums / self.count
