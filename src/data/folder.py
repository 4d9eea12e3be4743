"""Folders of image files: class folders, a flat folder, or either below published splits."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.data.base import ImageDataModule, Split
from src.data.layout import KINDS, Layout, arrange, list_images
from src.data.picture import Fit, Treatment
from src.data.splits import ImagePool
from src.data.store import OnBadImage, Paths, open_store
from src.system.errors import UserError
from src.system.files import readable
from src.system.keys import require
from src.system.places import no_folder
from src.system.signals import time_limit

FEW_PATIENTS, LARGE_SHARE = 3, 0.1  # fewer patients, or a larger share of the files, may be a placeholder's
NAMED = 3  # undecodable files that the data line names
PATIENCE = 20.0  # seconds that the regular expression may take for all files


class FolderDataModule(ImageDataModule):
    """Image files below ``root``; grey or colour, of any size.

    Read as :func:`src.data.layout.arrange` says: folders called train, val and test (or the like, in any case) are
    published splits; below them, or below ``root`` itself, each folder is a class; files beside no folder have none.

    Args:
        root: the folder.
        cache_dir: where the decoded images are kept.
        on_bad_image: ``raise`` names a file that cannot be decoded; ``skip`` leaves it out and counts it.
        group_pattern: regular expression with one group, searched in each file's path below ``root``; files for which
            it captures the same text (a patient) are never parted. None takes the patient's ID of DICOM files, of which
            a hash is kept.
        fit: how a picture becomes a square: ``stretch``; ``pad`` with black beside it; ``crop`` to its middle.
        published: splits that must be there: without them it is not this data set.
        where_to_get: what to tell somebody who does not have the data.
        **common: as for :class:`ImageDataModule`.
    """

    def __init__(
        self,
        root: str,
        cache_dir: str,
        on_bad_image: OnBadImage = "raise",
        group_pattern: str | None = None,
        fit: Fit = "stretch",
        published: Sequence[Split] = (),
        where_to_get: str = "Set data.root to a folder of images",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        require("data", root=root, cache_dir=cache_dir, on_bad_image=on_bad_image, group_pattern=group_pattern)
        require("data", fit=fit, published=[*published])
        self.root = Path(root)
        self.cache_dir = Path(cache_dir)
        self.on_bad_image = on_bad_image
        self.group_pattern = group_pattern
        self.treatment = Treatment(fit)
        self.published = published
        self.where_to_get = where_to_get

    def load_pool(self) -> ImagePool:
        """Decode the files into the cache, or read them from it.

        Raises:
            UserError: the folder holds no images to train on, or a file cannot be decoded.
        """
        layout, notes = self._layout()
        files = layout.files
        groups, matched = self._groups(files)
        store = open_store(
            self.root,
            files,
            self.image_size,
            self.channels,
            self.cache_dir,
            self.name,
            self.on_bad_image,
            self.treatment,
        )
        if self.group_pattern is None:
            groups, matched = _patients(files, store.found.patients)
        published = np.array(layout.published, dtype=object)
        published[[*store.found.bad]] = "skipped"
        self._refuse_nothing_to_train_on(files, published, store.found.bad)
        classes = sorted(set(layout.classes) - {""})
        number = {name: i for i, name in enumerate(classes)} | {"": -1}
        return ImagePool(
            images=store.images,
            labels=torch.tensor([number[name] for name in layout.classes]),
            classes=[readable(name) for name in classes],
            published=published.astype(str),
            digests=store.digests,
            groups=groups,
            names=[readable(file) for file in files],
            paths=Paths(self.root, files),
            notes=[*notes, *_undecodable(files, store.found.bad), *store.found.notes, *matched],
            treatment=store.found.treatment | self.treatment.squares,
        )

    def read_as(self, recorded: Mapping[str, Any]) -> None:
        """Read grey as another pool's ``treatment`` says, before the images are read: a model knows no other grey."""
        self.treatment = Treatment.of(recorded)._replace(fit=self.treatment.fit)

    def _layout(self) -> tuple[Layout, list[str]]:
        """Return the files with splits and classes, and notes on the folder."""
        root = readable(self.root)
        if obstacle := no_folder(self.root):
            raise UserError(f"{self.name}: {obstacle}. {self.where_to_get}")
        files, notes = list_images(self.root)
        if not files:
            found = f" ({'; '.join(notes)})" if notes else ""
            raise UserError(f"{self.name}: no image files ({KINDS}) below {root}{found}. {self.where_to_get}")
        layout = arrange(self.root, files)
        if missing := [split for split in self.published if split not in layout.published]:
            lacks = " and ".join(f"{split}/" for split in missing)
            raise UserError(f"{self.name}: no images in {lacks} of {root}. {self.where_to_get}")
        return layout, [*notes, *layout.notes]

    def _refuse_nothing_to_train_on(self, files: list[str], published: np.ndarray, bad: dict[int, str]) -> None:
        if len(bad) == len(files):
            raise UserError(
                f"{self.name}: none of the {len(files):,} image files could be decoded: {readable(files[0])}: {bad[0]}"
            )
        if set(published) <= {"test", "skipped"}:
            raise UserError(
                f"{self.name}: all images of {readable(self.root)} that can be decoded are test images: there is none "
                "to train on. Add a folder train/ beside that of the test images, or set data.root to the latter"
            )

    def _groups(self, files: list[str]) -> tuple[list[str] | None, list[str]]:
        """Return the group of each file (itself where the pattern does not match), and a note on how many match."""
        if self.group_pattern is None:
            return None, []
        pattern = f"data.group_pattern='{self.group_pattern}'"
        with time_limit(PATIENCE, f"{pattern} takes longer than {PATIENCE:g} s: make it simpler"):
            matches = [re.search(self.group_pattern, file) for file in files]
        captured = [match.group(1) if match else None for match in matches]
        count, groups = sum(map(bool, captured)), set(filter(None, captured))
        if not groups:
            example = readable(files[0])
            raise UserError(
                f"{pattern} captures nothing in any of the {len(files):,} paths below data.root, such as {example}"
            )
        matched = f"{count:,} of {len(files):,} paths match data.group_pattern: {len(groups):,} groups"
        return [text or file for text, file in zip(captured, files, strict=True)], [matched]


def _patients(files: list[str], patients: Mapping[int, str]) -> tuple[list[str] | None, list[str]]:
    """Return the group of each file (itself where its patient is not known), and a note on how many patients there are.

    Args:
        files: the files.
        patients: hash of the patient's ID of the DICOM files that have one, by position.
    """
    if not patients:
        return None, []
    sizes = Counter(patients.values())
    counted = f"{len(sizes):,} patients by the PatientID of {len(patients):,} of {len(files):,} files"
    largest = max(sizes.values())
    if len(sizes) < FEW_PATIENTS or largest > LARGE_SHARE * len(files):
        counted += (
            f", one of whom has {largest:,}: if that ID is a placeholder, name patients by data.group_pattern, or each "
            "file by data.group_pattern='\"(.*)\"'"
        )
    return [patients.get(i, file) for i, file in enumerate(files)], [counted]


def _undecodable(files: Sequence[str], bad: Mapping[int, str]) -> list[str]:
    """Return a note on the first few files that were skipped, and why."""
    named = [f"{readable(files[i])} ({reason.split('. ')[0]})" for i, reason in [*bad.items()][:NAMED]]
    return [f"not decoded: {', '.join(named)}{' and others' if len(bad) > NAMED else ''}"] if bad else []
