"""What the checks of an audit look at, and what each of them gives."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor

from src.auditing import alike
from src.auditing.originals import Original
from src.data.base import ImageDataModule
from src.data.splits import ImagePool

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Finding:
    """One result of the audit.

    Attributes:
        kind: a word for it, which names its picture.
        words: a sentence with its number, and what to do.
        problem: whether it may spoil a training or its figures.
        images: positions in the pool of what is meant, the worst first; pairs where two belong together.
        reasons: what to write below each of them.
        count: how many there are in all.
    """

    kind: str
    words: str
    problem: bool = True
    images: Sequence[tuple[int, ...]] = ()
    reasons: Sequence[str] = ()
    count: int = 0


@dataclass
class Evidence:
    """What the checks look at: N images.

    Attributes:
        datamodule: the data set.
        originals: the files as they were saved; None where the images are no files.
    """

    datamodule: ImageDataModule
    originals: list[Original | None] | None
    known_pairs: set[tuple[int, int]] = field(default_factory=set)

    @property
    def pool(self) -> ImagePool:
        """All images, at the training's size."""
        return self.datamodule.pool

    @cached_property
    def thumbs(self) -> tuple[Tensor, Tensor]:
        """Thumbnails and contrast of all images."""
        return alike.thumbnails(self.pool.images)

    @cached_property
    def sides(self) -> np.ndarray:
        """The split of each image in a training, "" for none ``[N]``."""
        sides = np.full(len(self.pool), "", dtype=object)
        for part in SPLITS:
            sides[getattr(self.datamodule.splits, part).numpy()] = part
        return sides

    @cached_property
    def usable(self) -> np.ndarray:
        """Whether each image could be decoded ``[N]``."""
        return self.pool.published != "skipped"

    def class_of(self, i: int) -> str:
        """Return the name of an image's class, "" for none."""
        label = int(self.pool.labels[i])
        return self.pool.classes[label] if label >= 0 else ""

    def crossing(self, pair: Sequence[int]) -> str:
        """Say what two images that should be one have that differs: classes, splits, or nothing."""
        classes = {self.class_of(i) for i in pair}
        parts = [side for side in SPLITS if side in {self.sides[i] for i in pair}]
        between = ["two classes"] if len(classes) > 1 else []
        between += [f"{' and '.join(parts)}"] if len(parts) > 1 else []
        return ", ".join(between)
