"""Batches of stored images: index-gathered, shared out among processes, equal in every run with a seed."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.data.splits import ImagePool
from src.system.errors import UserError
from src.system.seeds import derive_seed


class Batch(NamedTuple):
    """Images ``[B, C, H, W]``, class labels ``[B]`` (-1 where unknown), and positions ``[B]`` of the images in a split.

    Images are uint8 as stored; float in [0, 1] once the data module has prepared them on the device.
    """

    x: Tensor
    label: Tensor
    position: Tensor | None = None


class StoredImages(Dataset):
    """Some images of a pool, read many at a time: ``dataset[indices]`` is one gather, not a loop.

    Args:
        pool: the images.
        indices: which of them.
        images: a copy of the pool's images on another device, which batches are then taken from.
    """

    def __init__(self, pool: ImagePool, indices: Tensor, images: Tensor | None = None) -> None:
        self.indices = indices
        self.images = pool.images if images is None else images
        self.labels = pool.labels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, positions: Tensor) -> Batch:
        chosen = self.indices[positions]
        # Faster than indexing by a tensor.
        images = self.images.index_select(0, chosen.to(self.images.device, non_blocking=True))
        return Batch(images, self.labels.index_select(0, chosen), positions)


class BatchIndices(Sampler[Tensor]):
    """Yield the positions of each batch, a function of seed and epoch alone, shared out among processes.

    ``batch_size`` counts the images of one optimizer step over all processes: rank r takes every ``world_size``-th
    position of each batch from r on, so training on several processes sees the batches that one process sees.
    Training leaves out the incomplete last batch (batch norm and averaged gradients need equal batches);
    evaluation gets every image exactly once.
    """

    def __init__(
        self, num_images: int, batch_size: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__()
        self.num_images = num_images
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        if shuffle:
            self.batch_size = min(batch_size, num_images - num_images % world_size)
            stop = num_images - num_images % self.batch_size
        else:
            self.batch_size, stop = batch_size, num_images
        self.starts = range(0, stop, self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each one, also when it resumes."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.arange(self.num_images)
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "shuffle", self.epoch))
            order = torch.randperm(self.num_images, generator=generator)
        for start in self.starts:
            mine = order[start : start + self.batch_size][self.rank :: self.world_size]
            if len(mine):
                yield mine

    def __len__(self) -> int:
        last = self.num_images - self.starts[-1]  # images in the last evaluation batch, perhaps fewer than processes
        return len(self.starts) - int(not self.shuffle and last <= self.rank)


def loader(
    stored: StoredImages, part: str, batch_size: int, seed: int, share: tuple[int, int], pin_memory: bool
) -> DataLoader:
    """Return the batches of a split for one process; those of the training split are shuffled.

    Args:
        stored: the images of the split.
        part: its name.
        batch_size: images of all processes together.
        seed: decides the order.
        share: number of this process, and how many there are.
        pin_memory: whether batches are copied to a GPU.

    Raises:
        UserError: images or batches cannot be shared among so many processes.
    """
    rank, world_size = share
    if batch_size % world_size:
        raise UserError(
            f"data.batch_size={batch_size} cannot be shared among {world_size} processes: choose a multiple of "
            f"{world_size}"
        )
    if len(stored) < world_size:
        raise UserError(f"the {part} split has {len(stored)} images for {world_size} processes: use fewer")
    return DataLoader(
        stored,
        sampler=BatchIndices(
            len(stored), batch_size, shuffle=part == "train", seed=seed, rank=rank, world_size=world_size
        ),
        batch_size=None,
        # Its own: the loader's seed must not be drawn from the stream that the latent noise comes from.
        generator=torch.Generator().manual_seed(0),
        pin_memory=pin_memory,
    )
