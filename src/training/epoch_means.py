"""Compute means over the images of a split, exact for any batch size and number of processes."""

from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor
from torchmetrics import Metric

from src.metrics.posterior import ACTIVE_VARIANCE
from src.models.base import BaseVAE


class ExampleMean(Metric):
    """Compute the mean over all images of a vector of ``features`` numbers per image.

    Sums and counts are float64 and added over processes, so every image has the same weight, even in a smaller last
    batch (Kıvrıl 2021 divides by batches times batch size instead).
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


class EpochMeans(Callback):
    """Log the means of a split as ``train/elbo``, ``val/rate`` and so on, in nats per image, when the split ends.

    They are computed from the ``rows`` that a model's steps return. Callbacks that read the means must come later.

    Attributes:
        rates: means over the split that ended last of the parts of the rate, one for each latent where it factorizes.
    """

    rates: Tensor

    def __init__(self) -> None:
        self._means: dict[str, ExampleMean] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Start a mean of rows that hold three terms and the parts of the rate."""
        self._means["train"] = ExampleMean(sum(pl_module.row_sizes())).to(pl_module.device)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Start a mean of rows that also hold the posterior mean of each latent and its square, if there are codes."""
        self._means["val"] = ExampleMean(sum(pl_module.row_sizes(moments=True))).to(pl_module.device)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Start a mean of the same rows as in validation."""
        self._means["test"] = ExampleMean(sum(pl_module.row_sizes(moments=True))).to(pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: BaseVAE, outputs: Any, *args: Any) -> None:
        """Add the images of a batch."""
        self._means["train"].update(outputs["rows"])

    def on_validation_batch_end(self, trainer: Trainer, pl_module: BaseVAE, outputs: Any, *args: Any) -> None:
        """Add the images of a batch."""
        self._means["val"].update(outputs["rows"])

    def on_test_batch_end(self, trainer: Trainer, pl_module: BaseVAE, outputs: Any, *args: Any) -> None:
        """Add the images of a batch."""
        self._means["test"].update(outputs["rows"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Log the means of the epoch, over which the weights changed."""
        self._log(trainer, pl_module, "train")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Log the means of the validation split, and the number of active latents (Burda et al. 2016)."""
        self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Log the means of the test split, and the number of active latents."""
        self._log(trainer, pl_module, "test")

    def _log(self, trainer: Trainer, model: BaseVAE, split: str) -> None:
        means = self._means[split].compute()
        terms, self.rates, *moments = means.split(model.row_sizes(moments=split != "train"))
        loss, distortion, rate = terms.tolist()
        if split != "train":
            loss = model.loss.of_split(loss, distortion, rate, model.kl_weight)
        elbo = {"elbo": -(distortion + rate)} if model.has_elbo else {}
        metrics = elbo | {"distortion": distortion} | ({"rate": rate} if elbo else {}) | {"loss": loss}
        if model.loss.bound:
            metrics[model.loss.bound] = -loss
        if moments:
            mean, square = moments
            metrics["active_latents"] = float((square - mean**2 > ACTIVE_VARIANCE).sum())
        dimensions, pixels = torch.Size(model.image_shape).numel(), trainer.datamodule.pixels
        bits = model.likelihood.bits_per_dim(distortion + rate, dimensions, pixels)
        if bits is not None and model.has_elbo:
            metrics["bits_per_dim"] = bits
        for name, value in metrics.items():
            self.log(f"{split}/{name}", value, sync_dist=True)  # the means are equal in all processes
