"""Deterministic, leak-free splits that stay stable when images are added.

Images that must stay together (one patient's, byte-identical ones) form a group, and a group is in one split. A hash of
its name or content decides which, not the number of other groups: added images move few others.
"""

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from src.system.errors import UserError

DIGEST = 16  # bytes of a content's hash
TENTH = 0.1  # of the images are for validation by default


def content_digest(data: bytes) -> bytes:
    """Return 16 bytes that are equal for equal content, on every machine."""
    return blake2b(data, digest_size=DIGEST).digest()


@dataclass
class ImagePool:
    """All images of a data set, before they are split. N images.

    Attributes:
        images: uint8 ``[N, C, H, W]``, in memory or memory-mapped.
        labels: int64 ``[N]``, -1 where unknown.
        classes: name of each label.
        published: ``train``, ``val`` or ``test`` as the publisher split them; "" where unsplit; ``skipped`` for an
            image that could not be decoded, which joins no split.
        digests: content hash of each image as published (file bytes, or pixels before resizing).
        groups: what must stay together besides identical images, such as the patient; None where nothing does.
        names: file name of each image, as people read it; None where images have none.
        paths: where the file of each image is; None where images are no files.
        notes: what was found while reading the images, in words.
        treatment: what was done to the pixels besides resizing: ``depth``, the bits that grey of more than 8 bits is
            read with, or ``range``, its least and largest value; ``fit``, where pictures are not stretched;
            ``transparency``.
    """

    images: Tensor
    labels: Tensor
    classes: list[str]
    published: np.ndarray
    digests: list[bytes]
    groups: list[str] | None = None
    names: list[str] | None = None
    paths: Sequence[str] | None = None
    notes: list[str] = field(default_factory=list)
    treatment: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def units(self, index: Tensor) -> list[int]:
        """Return for images of the pool the number of what stays together: a patient's images, or identical ones."""
        return _components(self)[0].of[index.numpy()].tolist()


class Splits(NamedTuple):
    """Indices into the pool, int64, and what was found while splitting, in words."""

    train: Tensor
    val: Tensor
    test: Tensor
    notes: list[str]


def split(pool: ImagePool, val_fraction: float | None, test_fraction: float, seed: int) -> Splits:
    """Split a pool: published test images stay as they are, validation is carved from the rest by group.

    Training images that are byte-identical to a test image (or to a published validation image) are left out.

    Args:
        pool: the images.
        val_fraction: part of the images outside the test split; None takes the published validation split, which
            otherwise joins the training images, and a tenth where none was published.
        test_fraction: part of all images, where the publisher names no test images.
        seed: decides which groups are carved out.

    Raises:
        UserError: there are too few images or groups for three non-empty splits.
    """
    notes = []
    usable = np.flatnonzero(pool.published != "skipped")
    if skipped := len(pool) - len(usable):
        notes.append(f"{skipped} undecodable images skipped")
    groups, found = _components(pool)
    notes += found

    as_published = val_fraction is None and (pool.published == "val").any()
    if (pool.published == "test").any():
        test = np.flatnonzero(pool.published == "test")
    else:
        free = usable[pool.published[usable] != "val"] if as_published else usable
        test = _carve(free, groups, test_fraction, seed, "test")
    rest = np.setdiff1d(usable, test, assume_unique=True)
    rest = _without_copies(rest, test, pool, "test", notes)
    notes += _shared_groups(rest, test, pool, "test")

    if as_published:
        val = rest[pool.published[rest] == "val"]
        if not len(val):
            raise UserError(
                "every image published for validation is one of the test images too: give data.val_fraction"
            )
        train = _without_copies(np.setdiff1d(rest, val, assume_unique=True), val, pool, "validation", notes)
        notes += _shared_groups(train, val, pool, "validation")
    else:
        val = _carve(rest, groups, TENTH if val_fraction is None else val_fraction, seed, "validation")
        train = np.setdiff1d(rest, val, assume_unique=True)
    if not len(train):
        raise UserError("no training images are left after the splits: add images or lower data.val_fraction")
    return Splits(*(torch.from_numpy(part) for part in (train, val, test)), notes)


def of_classes(splits: Splits, pool: ImagePool, classes: Sequence[str]) -> Splits:
    """Return splits whose training and validation images are of these classes; test images stay as they are.

    The validation images are those of these classes that a training on all classes has. A class is given by its name
    or, where none has that name, by its number.

    Raises:
        UserError: there is no such class, or a split has no image of these.
    """
    wanted = f"data.classes=[{','.join(classes)}]"
    numbers = torch.tensor(class_numbers(pool, classes, "data.classes"))
    parts = {
        side: part[torch.isin(pool.labels[part], numbers)]
        for side, part in zip(("training", "validation"), splits[:2], strict=True)
    }
    if empty := [side for side, part in parts.items() if not len(part)]:
        raise UserError(f"{wanted} leaves no {empty[0]} images: add images of these classes")
    left_out = sum(map(len, splits[:2])) - sum(map(len, parts.values()))
    names = ", ".join(pool.classes[number] for number in numbers.tolist())
    note = f"trained and validated on {names} alone: {left_out:,} images of other classes left out"
    return Splits(*parts.values(), splits.test, [*splits.notes, note])


def class_numbers(pool: ImagePool, classes: Sequence[str], key: str) -> list[int]:
    """Return the numbers of classes, each given by its name or, where none has that name, by its number.

    Args:
        pool: the images.
        classes: names or numbers.
        key: that they were given in, for the error.

    Raises:
        UserError: there is no such class.
    """
    wanted = f"{key}=[{','.join(classes)}]"
    if not pool.classes:
        raise UserError(f"{wanted}: the images have no classes: leave {key}=null")
    places = {str(number): number for number in range(len(pool.classes))}
    places |= {name: number for number, name in enumerate(pool.classes)}
    if unknown := [name for name in classes if name not in places]:
        raise UserError(f"{wanted}: there is no class {unknown[0]}: choose from {', '.join(pool.classes)}")
    return [*dict.fromkeys(places[name] for name in classes)]


class _Groups(NamedTuple):
    """Images that stay together: the number of each image's group, and a stable name of each group."""

    of: np.ndarray  # [N]
    names: list[bytes]  # the least of its images' own groups, or of their content


def _components(pool: ImagePool) -> tuple[_Groups, list[str]]:
    """Return the groups (images linked by equal content or equal group name), and notes on them."""
    notes = []
    keys = [_numbered(pool.digests)]
    sizes = np.bincount(keys[0])
    if (sizes > 1).any():
        notes.append(
            f"{(sizes > 1).sum()} sets of byte-identical images ({sizes[sizes > 1].sum()} images) kept together"
        )
    if pool.groups is not None:
        keys.append(_numbered(pool.groups))
    # A graph whose nodes are the images, then the keys; every image is linked to its keys.
    count, links = len(pool), []
    offset = count
    for key in keys:
        links.append((np.arange(count), key + offset))
        offset += key.max() + 1
    rows, columns = (np.concatenate(side) for side in zip(*links, strict=True))
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(offset, offset))
    of = connected_components(graph, directed=False)[1][:count]
    names: dict[int, bytes] = {}
    own = pool.digests if pool.groups is None else [os.fsencode(group) for group in pool.groups]
    for group, name in zip(of.tolist(), own, strict=True):
        names[group] = min(names.get(group, name), name)
    return _Groups(of, [names.get(group, b"") for group in range(of.max() + 1)]), notes


def _numbered(values: Sequence[Hashable]) -> np.ndarray:
    """Number the values; equal ones get equal numbers."""
    numbers: dict[Hashable, int] = {}
    return np.fromiter((numbers.setdefault(value, len(numbers)) for value in values), np.int64, len(values))


def _shared_groups(rest: np.ndarray, part: np.ndarray, pool: ImagePool, side: str) -> list[str]:
    """Return a note where a published split shares groups with other images; such a split stays as it is."""
    if pool.groups is None:
        return []
    held = {pool.groups[i] for i in part.tolist()}
    shared = [pool.groups[i] for i in rest.tolist() if pool.groups[i] in held]
    if not shared:
        return []
    return [
        f"{len(set(shared))} groups also occur in the published {side} split ({len(shared)} other images), "
        "which is left as it is"
    ]


def _carve(candidates: np.ndarray, all_groups: _Groups, fraction: float, seed: int, side: str) -> np.ndarray:
    """Take whole groups, in the order of hashes of seed and name, until they hold ``fraction`` of the candidates.

    Raises:
        UserError: no group would be left.
    """
    groups, members = np.unique(all_groups.of[candidates], return_inverse=True)
    sizes = np.bincount(members)
    salt = f"{seed} {side} ".encode()
    order = np.argsort(np.array([content_digest(salt + all_groups.names[group]) for group in groups.tolist()]))
    wanted = max(1, round(fraction * len(candidates)))
    taken = order[: np.searchsorted(np.cumsum(sizes[order]), wanted) + 1]
    if len(taken) == len(groups):
        raise UserError(
            f"cannot carve a {side} split out of {len(candidates)} images in {len(groups)} groups (identical images, "
            "or a patient's by data.group_pattern or PatientID): add images, or give another data.group_pattern"
        )
    return candidates[np.isin(members, taken)]


def _without_copies(
    candidates: np.ndarray, protected: np.ndarray, pool: ImagePool, side: str, notes: list[str]
) -> np.ndarray:
    """Return ``candidates`` without those whose content is also in ``protected``."""
    held = {pool.digests[i] for i in protected.tolist()}
    keep = np.array([pool.digests[i] not in held for i in candidates.tolist()], dtype=bool)
    if not keep.all():
        notes.append(f"{(~keep).sum()} images left out because they are identical to {side} images")
    return candidates[keep]
