"""Means over the images of a split, exact whatever the batch sizes and the number of processes."""

import torch
from torch import Tensor
from torchmetrics import Metric


class ExampleMean(Metric):
    """Mean over all images seen of a vector of ``features`` numbers an image.

    Sums and counts are kept in float64 and added over processes, so the last, smaller batch weighs what it should
    (Kıvrıl 2021 divides by batches times batch size instead).
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
        """The mean ``[features]`` in float64."""
        return self.sums / self.count
