"""Folders of image files: class folders, a flat folder, or either below train/ and test/."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from src.data.base import ImageDataModule
from src.data.splits import ImagePool
from src.data.store import OnBadImage, open_store
from src.errors import UserError
from src.system.keys import require

PUBLISHED = ("train", "val", "test")


class FolderDataModule(ImageDataModule):
    """Image files below ``root``; grey or colour, of any size.

    Read as found: ``root/train``, ``root/val`` and ``root/test`` are published splits; below them, or below ``root``
    itself, each folder is a class; files beside no folder have no class.

    Args:
        root: the folder.
        cache_dir: where the decoded images are kept.
        on_bad_image: ``raise`` names a file that cannot be decoded; ``skip`` leaves it out and counts it.
        group_pattern: regular expression with one group, searched in each file name; files for which it captures
            the same text (a patient) are never parted.
        where_to_get: what to tell somebody who does not have the data.
        **common: as for :class:`ImageDataModule`.
    """

    def __init__(
        self,
        root: str,
        cache_dir: str,
        on_bad_image: OnBadImage = "raise",
        group_pattern: str | None = None,
        where_to_get: str = "Set data.root to a folder of images",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        require("data", root=root, cache_dir=cache_dir, on_bad_image=on_bad_image, group_pattern=group_pattern)
        self.root = Path(root)
        self.cache_dir = Path(cache_dir)
        self.on_bad_image = on_bad_image
        self.group_pattern = group_pattern
        self.where_to_get = where_to_get

    def load_pool(self) -> ImagePool:
        """Decode the files into the cache, or read them from it."""
        names = self._files()
        store = open_store(
            self.root, names, self.image_size, self.channels, self.cache_dir, self.name, self.on_bad_image
        )
        published, class_names = zip(*(_place(name) for name in names), strict=True)
        classes = sorted(set(class_names) - {""})
        return ImagePool(
            images=store.images,
            labels=torch.tensor([classes.index(c) if c else -1 for c in class_names]),
            classes=classes,
            published=np.array(
                ["skipped" if name in store.bad else side for name, side in zip(names, published, strict=True)]
            ),
            digests=store.digests,
            groups=None if self.group_pattern is None else [self._group(name) for name in names],
            names=names,
        )

    def _files(self) -> list[str]:
        """All image files, sorted folder by folder: their paths below the root."""
        if not self.root.is_dir():
            raise UserError(f"{self.name}: there is no folder {self.root}. {self.where_to_get}")
        found = []
        for folder, _, names in os.walk(self.root):
            below = os.path.relpath(folder, self.root)
            images = (name for name in names if name.lower().endswith(IMG_EXTENSIONS))
            found += [name if below == os.curdir else f"{below}/{name}" for name in images]
        files = sorted((f for f in found if os.path.isfile(self.root / f)), key=lambda f: f.split("/"))
        if not files:
            kinds = ", ".join(e.lstrip(".") for e in IMG_EXTENSIONS)
            raise UserError(f"{self.name}: no image files ({kinds}) below {self.root}. {self.where_to_get}")
        return files

    def _group(self, file: str) -> str:
        """What the file's name says must stay together; the file alone where the pattern does not match."""
        match = re.search(self.group_pattern, os.path.basename(file))
        return match.group(1) if match else file


def _place(file: str) -> tuple[str, str]:
    """Published split and class of a file, "" for none."""
    *folders, _ = file.split("/")
    published = folders.pop(0) if folders and folders[0] in PUBLISHED else ""
    return published, folders[0] if folders else ""
