"""Test that splits leak no image from one to another."""

import dataclasses

import numpy as np
import pytest
import torch

from src.data.splits import ImagePool, content_digest, of_classes, split
from src.system.errors import UserError
from tests.helpers import sides


def pool(content: list[int], groups: list[str] | None = None, published: list[str] | None = None) -> ImagePool:
    """Return one-pixel images of these values."""
    images = torch.tensor(content, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImagePool(
        images,
        torch.full((len(content),), -1),
        [],
        np.array(published or [""] * len(content)),
        [bytes([value]) for value in content],
        groups,
    )


def test_splits_are_disjoint_complete_and_deterministic():
    images = pool(list(range(100)))
    first, again, other = (split(images, 0.1, 0.2, seed) for seed in (0, 0, 1))
    assert len(sides(first)) == 100
    assert [len(part) for part in first[:3]] == [72, 8, 20]
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    assert not torch.equal(first.val, other.val)


def test_identical_images_and_patients_stay_together():
    content = [i // 2 for i in range(120)]  # pairs of identical images
    groups = [f"patient{i % 40 // 3}" for i in range(120)]  # they link pairs to larger components
    found = sides(split(pool(content, groups), 0.2, 0.2, 3))
    for a in range(120):
        for b in range(a):
            if content[a] == content[b] or groups[a] == groups[b]:
                assert found[a] == found[b]
    assert set(found.values()) == {"train", "val", "test"}


def test_published_test_stays_and_its_copies_leave_training():
    images = pool([1, 2, 3, 4, 5, 6, 3], published=["train"] * 6 + ["test"])
    splits = split(images, 0.3, 0.5, 0)
    assert splits.test.tolist() == [6]
    assert 2 not in sides(splits)
    assert any("1 images left out because they are identical to test images" in note for note in splits.notes)


def test_published_validation_on_request():
    images = pool([1, 2, 3, 3, 5], published=["train", "train", "train", "val", "test"])
    splits = split(images, None, 0.5, 0)
    assert (splits.train.tolist(), splits.val.tolist()) == ([0, 1], [3])
    unpublished = pool(list(range(90)))
    assert len(split(unpublished, None, 0.3, 0).val) == 6  # a tenth of the images that are not test images
    images = pool([*range(20), 20, 21], published=["train"] * 20 + ["val"] * 2)
    carved = split(images, None, 0.2, 0)
    assert carved.val.tolist() == [20, 21]
    assert len(carved.test) == 4
    images = pool([1, 2, 3, 4], ["a", "b", "a", "c"], ["train", "train", "val", "test"])
    assert any(
        "1 groups also occur in the published validation split" in note for note in split(images, None, 0, 0).notes
    )


@pytest.mark.parametrize("patients", [False, True])
def test_added_images_move_few_others(patients):
    """A new permutation of all groups would move about a third of them."""

    def sides_of(count: int) -> dict[int, str]:
        names = [f"patient{i % 100}" for i in range(count)] if patients else None
        return sides(split(numbered(count, names), 0.1, 0.2, 0))

    before, after = sides_of(200), sides_of(203)
    moved = [i for i in before if before[i] != after[i]]
    assert len(moved) <= 8
    assert set(after) == set(range(203))


def numbered(count: int, groups: list[str] | None = None) -> ImagePool:
    images = torch.zeros(count, 1, 1, 1, dtype=torch.uint8)
    digests = [content_digest(str(i).encode()) for i in range(count)]
    return ImagePool(images, torch.full((count,), -1), [], np.full(count, ""), digests, groups)


def test_too_few_groups_are_refused():
    with pytest.raises(UserError, match="cannot carve a test split"):
        split(pool([1, 2, 3], groups=["a", "a", "a"]), 0.3, 0.3, 0)


def test_one_class_is_trained_and_validated_on_and_all_are_tested():
    images = dataclasses.replace(
        pool([*range(90)]), labels=torch.arange(90) % 3 - (torch.arange(90) >= 84).long() * 3, classes=["a", "b", "c"]
    )
    both = split(images, 0.2, 0.2, 0)
    one = of_classes(both, images, ["b"])
    assert torch.equal(of_classes(both, images, ["1"]).train, one.train)  # no class has that name
    named = dataclasses.replace(images, classes=["a", "b", "1"])
    assert not torch.equal(of_classes(both, named, ["1"]).train, one.train)
    assert torch.equal(one.test, both.test)
    for side in ("train", "val"):
        kept, before = getattr(one, side), getattr(both, side)
        assert kept.tolist() == [i for i in before.tolist() if images.labels[i] == 1]
        assert 0 < len(kept) < len(before)
    (note,) = set(one.notes) - set(both.notes)
    assert note.startswith("trained and validated on b alone: ")


@pytest.mark.parametrize(
    ("classes", "labels", "words"),
    [
        (["a", "d"], [0, 1], r"data.classes=\[a,d\]: there is no class d: choose from a, b"),
        (["b"], [0, 0], "leaves no training images"),
        (["a"], None, "the images have no classes: leave data.classes=null"),
    ],
)
def test_impossible_classes_are_one_line(classes, labels, words):
    images = pool([*range(40)])
    if labels:
        images = dataclasses.replace(images, labels=torch.tensor(labels * 20), classes=["a", "b"])
    with pytest.raises(UserError, match=words):
        of_classes(split(images, 0.2, 0.2, 0), images, classes)
