"""What the data tell a model beyond the shape of an image: how many training images there are, and which."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from src.data.batches import StoredImages
from src.system.errors import UserError

if TYPE_CHECKING:
    from src.data.base import ImageDataModule

NUMBERS_AT_ONCE = 2**22  # pixels that are held as floats together


class TrainingImages:
    """The training images of a data module; none is read before it is needed.

    Each pixel has the value that the model sees, on average over random draws (dynamic binarization, dequantization),
    so an image is the same at every look. A model refers to them: a copied model shares them, a pickled one loses them.

    Args:
        shape: channels, height and width ``(C, H, W)`` of an image.
        datamodule: whose they are; None for a model that is not to know any.
    """

    def __init__(self, shape: tuple[int, int, int], datamodule: "ImageDataModule | None" = None) -> None:
        self.shape = shape
        self._datamodule = datamodule

    def __deepcopy__(self, memo: dict[int, Any]) -> "TrainingImages":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainingImages, (self.shape,)

    @property
    def _source(self) -> "ImageDataModule":
        if self._datamodule is None:
            raise UserError(
                "a part of this model is made of training images, and it was told of none: give the model "
                "images=datamodule.train_images"
            )
        return self._datamodule

    def __len__(self) -> int:
        return len(self._source.splits.train)

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Return the images at these positions in the training split, ``[n, C, H, W]``, in float32."""
        source = self._source
        stored = StoredImages(source.pool, source.splits.train, source.images_for_training())
        return source.expected(stored[positions].x)

    @cached_property
    def mean(self) -> Tensor:
        """Return the mean image ``[C, H, W]``, on the CPU."""
        total = torch.zeros(self.shape, dtype=torch.float64)
        for positions in self.positions():
            total += self[positions].sum(0, dtype=torch.float64).cpu()
        return (total / len(self)).float()

    def positions(self) -> tuple[Tensor, ...]:
        """Return the positions of all images, in as many parts as may be held together."""
        return torch.arange(len(self)).split(max(1, NUMBERS_AT_ONCE // torch.Size(self.shape).numel()))
