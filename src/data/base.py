"""From a pool of decoded images to batches: splits, loaders, scaling on the device."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from src.data.batches import Batch, StoredImages, loader
from src.data.pixels import Pixels
from src.data.splits import ImagePool, Splits, content_digest, of_classes, split
from src.data.training_images import TrainingImages
from src.metrics.contrast import contrast_map
from src.system.errors import NotApplicable, UserError
from src.system.keys import require
from src.system.seeds import stream

Split = Literal["train", "val", "test"]


class ImageDataModule(L.LightningDataModule):
    """A data set: a pool of images, its splits, and its batches.

    A data-set family implements :meth:`load_pool`; everything else is here.

    Args:
        name: what the data set is called in run folders and records.
        image_size: side of the square images, in pixels; others are resized to it (bilinear, antialiased).
        channels: 1 for grey, 3 for colour.
        batch_size: images an optimizer step, over all processes.
        val_fraction: part of the training images to validate on; null takes the published validation split,
            and a tenth where there is none.
        test_fraction: part of all images to test on, where no test split is published.
        split_seed: decides which images these are; separate from the run's seed, so that runs stay comparable.
        seed: decides the order of the training images.
        binarize: ``none``; ``threshold`` at half of full scale; ``dynamic``: drawn anew with the grey level as
            probability each time an image is seen (Salakhutdinov & Murray 2008).
        dequantize: add uniform noise of one grey level, so that a density of the pixels is a bound on the
            probability of their levels.
        classes: names (or numbers) of the classes to train and validate on, such as ``[NORMAL]``; null for all. Test
            images are those of all classes.
        contrast_cells: cells along a side whose contrast the model sees in place of pixels, see
            :func:`~src.metrics.contrast.contrast_map`; null for pixels.
    """

    binary_source = False  # whether the stored pixels are 0 and 255 only

    def __init__(
        self,
        name: str,
        image_size: int,
        channels: int,
        batch_size: int,
        val_fraction: float | None = None,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        seed: int = 0,
        binarize: Literal["none", "threshold", "dynamic"] = "none",
        dequantize: bool = False,
        classes: Sequence[str | int] | None = None,
        contrast_cells: int | None = None,
    ) -> None:
        super().__init__()
        require("data", name=name, image_size=image_size, channels=channels, batch_size=batch_size, binarize=binarize)
        require("data", val_fraction=val_fraction, test_fraction=test_fraction, dequantize=dequantize)
        require("data", split_seed=split_seed, seed=seed, classes=classes if classes is None else [*classes])
        require("data", contrast_cells=contrast_cells)
        self.name = name
        self.image_size = image_size
        self.channels = channels
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.seed = seed
        self.binarize = binarize
        self.dequantize = dequantize
        self.classes = None if classes is None else [str(name) for name in classes]
        self.contrast_cells = contrast_cells
        if dequantize not in (True, False):
            raise UserError(f"data.dequantize={dequantize} depends on the likelihood: give true or false")
        if dequantize and self.levels is not Pixels.DEQUANTIZED:
            raise UserError(
                "data.dequantize=true adds noise to grey levels, but these pixels are binary: set it to false"
            )
        if contrast_cells is not None and image_size % contrast_cells:
            whole = max(1, round(image_size / contrast_cells)) * contrast_cells
            raise UserError(
                f"data.contrast_cells={contrast_cells} does not divide data.image_size={image_size}: choose "
                f"data.image_size={whole}, or null for pixels"
            )
        self.tested: Split = "test"  # what trainer.test runs on
        self._pool: ImagePool | None = None
        self._splits: Splits | None = None
        self._on_gpu: Tensor | None = None

    @abstractmethod
    def load_pool(self) -> ImagePool:
        """Return all images of the data set, decoded and resized to uint8 ``[N, channels, image_size, image_size]``.

        Raises:
            UserError: the data are missing or broken; the message says where to get them and where to put them.
        """

    # ---- known without reading an image ------------------------------------------------------------------------

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the model sees: all that it needs to know."""
        if self.contrast_cells is None:
            return (self.channels, self.image_size, self.image_size)
        return (1, self.contrast_cells, self.contrast_cells)

    @property
    def resized_binary(self) -> bool:
        """Whether resizing has turned binary pixels grey."""
        return False

    @property
    def levels(self) -> Pixels:
        """The kind of an image's pixels: binary, grey levels, or dequantized ones."""
        if self.binarize != "none" or (self.binary_source and not self.resized_binary):
            return Pixels.BINARY
        return Pixels.DEQUANTIZED if self.dequantize else Pixels.GREY

    @property
    def pixels(self) -> Pixels:
        """The kind of values that the model sees: those of pixels, or features."""
        return self.levels if self.contrast_cells is None else Pixels.FEATURES

    # ---- the images ------------------------------------------------------------------------------------------

    @property
    def pool(self) -> ImagePool:
        """All images, read at first use."""
        if self._pool is None:
            self._pool = self.load_pool()
            if self._pool.images.shape[1] != self.channels:
                stored = self._pool.images.shape[1]
                raise UserError(f"{self.name} has {stored}-channel images: set data.channels={stored}")
        return self._pool

    @cached_property
    def train_images(self) -> TrainingImages:
        """What a model may be told of its training images, which are read when it asks."""
        return TrainingImages(self.image_shape, self)

    @property
    def splits(self) -> Splits:
        """Indices of the images of each split."""
        if self._splits is None:
            self._splits = split(self.pool, self.val_fraction, self.test_fraction, self.split_seed)
            if self.classes is not None:
                self._splits = of_classes(self._splits, self.pool, self.classes)
        return self._splits

    @property
    def as_published(self) -> bool:
        """Whether validation and test images are the published ones, not carved from other splits."""
        sides = {part: self.pool.published[getattr(self.splits, part).numpy()] for part in ("val", "test")}
        return all((published == part).all() for part, published in sides.items())

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that change whenever an image, its split, or what is done to its pixels changes."""
        return self._fingerprint(self.dequantize)

    @cached_property
    def stored_fingerprint(self) -> str:
        """The fingerprint without dequantization: bits per dimension are those of the levels that it adds noise to."""
        return self._fingerprint(dequantize=False)

    def _fingerprint(self, dequantize: bool) -> str:
        recipe = {"shape": self.image_shape, "binarize": self.binarize, "dequantize": dequantize}
        if self.contrast_cells is not None:
            recipe |= {"contrast_cells": self.contrast_cells, "image_size": self.image_size}
        # Earlier versions read all such grey with 16 bits and did not record it: their fingerprints stay valid.
        recipe |= {key: how for key, how in self.pool.treatment.items() if (key, how) != ("depth", 16)}
        digest = hashlib.blake2b(json.dumps(recipe).encode(), digest_size=16)
        for part in ("train", "val", "test"):
            digest.update(part.encode())
            for index in getattr(self.splits, part).tolist():
                digest.update(self.pool.digests[index])
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the data: the fingerprint."""
        return {"fingerprint": self.fingerprint}

    def prepare_data(self) -> None:
        """Download and decode, once per machine."""
        _ = self.pool

    def setup(self, stage: str) -> None:
        """Open the images and split them, in every process."""
        _ = self.splits

    def spread(self, part: Split, count: int | None = None) -> Tensor:
        """Return pool indices of ``count`` images spread evenly over a split; by default, or if it has fewer, all.

        They are spread evenly because folders are sorted by class.
        """
        indices = getattr(self.splits, part)
        count = len(indices) if count is None else min(count, len(indices))
        return indices[torch.arange(count) * len(indices) // count]

    def scale(self, images: Tensor) -> Tensor:
        """Convert uint8 images to the float32 values that the likelihood models, on the same device."""
        x = images.to(torch.float32)
        if self.binarize == "dynamic":
            return self._seen(torch.bernoulli(x / 255))
        return self._seen((x + torch.rand_like(x)) / 256) if self.dequantize else self.expected(images)

    def scale_alone(self, images: Tensor, seed: int) -> Tensor:
        """Return :meth:`scale` of images whose random draws are functions of the seed and the image alone.

        What a model says of an image then does not depend on which others are beside it.
        """
        if not self.dequantize and self.binarize != "dynamic":
            return self.scale(images)
        scaled = []
        for image in images:
            with stream(seed, "pixels of", content_digest(image.numpy().tobytes()).hex()):
                scaled.append(self.scale(image[None]))
        return torch.cat(scaled)

    def expected(self, images: Tensor) -> Tensor:
        """Return :meth:`scale` of the means of its random draws, on the same device: of pixels, its own mean."""
        x = images.to(torch.float32)
        if self.binarize == "threshold":
            return self._seen((x > 127.5).float())
        return self._seen((x + 0.5) / 256 if self.dequantize else x / 255)

    def _seen(self, x: Tensor) -> Tensor:
        """Return what the model sees of pixels ``[N, C, H, W]`` in [0, 1]."""
        return x if self.contrast_cells is None else contrast_map(x, self.contrast_cells)

    def seen(self, index: Tensor) -> Tensor:
        """Return images ``[n, C, H, W]`` of the pool as the model sees them, :meth:`expected` of each."""
        return self.expected(self.pool.images[index])

    def check_pixels(self, what: str) -> None:
        """Raise a NotApplicable that says what needs pixels if the model sees features of them."""
        if self.pixels is Pixels.FEATURES:
            raise NotApplicable(
                f"{what} pixels, and this model sees features of them (data.contrast_cells={self.contrast_cells})"
            )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale on the training device: uint8 is a quarter of the bytes to transfer."""
        return batch._replace(x=self.scale(batch.x))

    @property
    def _device(self) -> torch.device:
        """The device that the trainer uses."""
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def images_for_training(self) -> Tensor:
        """Return the stored images, copied to the trainer's GPU if they need less than a quarter of its free memory.

        A batch is then a gather on the GPU, which never waits for the host.
        """
        device = self._device
        if device.type != "cuda":
            return self.pool.images
        if self._on_gpu is None or self._on_gpu.device != device:
            if self.pool.images.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
                return self.pool.images
            self._on_gpu = self.pool.images.to(device)
        return self._on_gpu

    def _loader(self, part: Split) -> DataLoader:
        images = self.images_for_training()
        return loader(
            StoredImages(self.pool, getattr(self.splits, part), images),
            part,
            self.batch_size,
            self.seed,
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1),
            pin_memory=self._device.type == "cuda" and not images.is_cuda,
        )

    def train_dataloader(self) -> DataLoader:
        """Return shuffled batches."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        """Return every validation image once."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        """Return every image of the ``tested`` split once: the test split, or the one that stands in for it."""
        return self._loader(self.tested)
