"""Splits, batches, the image store, and what is said about broken data."""

import errno
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from PIL import Image

from src.data import store
from src.data.base import BatchIndices
from src.data.splits import ImagePool, split
from src.data.store import decode, open_store
from src.errors import UserError, explain
from src.likelihoods import Pixels
from src.record import describe_data
from src.runs import build_datamodule
from tests.conftest import REAL_DATA, composed, needs_binarized, needs_mnist, needs_xrays


def data(*overrides: str):
    return build_datamodule(composed(*overrides))


def pool(content: list[int], groups: list[str] | None = None, published: list[str] | None = None) -> ImagePool:
    """One-pixel images of these values."""
    images = torch.tensor(content, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImagePool(
        images,
        torch.full((len(content),), -1),
        [],
        np.array(published or [""] * len(content)),
        [bytes([value]) for value in content],
        groups,
    )


def sides(splits) -> dict[int, str]:
    """Which split each image is in; fails where one is in two."""
    found = {}
    for side in ("train", "val", "test"):
        for index in getattr(splits, side).tolist():
            assert index not in found
            found[index] = side
    return found


# ---- splits ----------------------------------------------------------------------------------------------------------


def test_splits_are_disjoint_complete_and_deterministic():
    images = pool(list(range(100)))
    first, again, other = (split(images, 0.1, 0.2, seed) for seed in (0, 0, 1))
    assert len(sides(first)) == 100
    assert [len(part) for part in first[:3]] == [72, 8, 20]
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    assert not torch.equal(first.val, other.val)


def test_identical_images_and_patients_stay_together():
    content = [i // 2 for i in range(120)]  # pairs of identical images
    groups = [f"patient{i % 40 // 3}" for i in range(120)]  # linked with them into larger components
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
    with pytest.raises(UserError, match="val_fraction=null"):
        split(pool(list(range(9))), None, 0.3, 0)


def test_too_few_groups_are_refused():
    with pytest.raises(UserError, match="cannot carve a test split"):
        split(pool([1, 2, 3], groups=["a", "a", "a"]), 0.3, 0.3, 0)


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_the_batches_of_one_process(world_size):
    def batches(rank, size):
        sampler = BatchIndices(50, 12, shuffle=True, seed=5, rank=rank, world_size=size)
        sampler.set_epoch(3)
        drawn = list(sampler)
        assert len(drawn) == len(sampler)
        return drawn

    whole = batches(0, 1)
    shares = [batches(rank, world_size) for rank in range(world_size)]
    assert len(whole) == 4  # the incomplete fifth is left out
    for step, batch in enumerate(whole):
        assert sorted(torch.cat([share[step] for share in shares]).tolist()) == sorted(batch.tolist())


@pytest.mark.parametrize(("images", "world_size"), [(50, 1), (50, 4), (49, 4), (3, 2), (12, 3)])
def test_evaluation_sees_every_image_once(images, world_size):
    samplers = [BatchIndices(images, 12, shuffle=False, rank=r, world_size=world_size) for r in range(world_size)]
    seen = [list(sampler) for sampler in samplers]
    assert [len(s) for s in samplers] == [len(batches) for batches in seen]
    assert sorted(i for batches in seen for batch in batches for i in batch.tolist()) == list(range(images))


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = BatchIndices(100, 10, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return torch.cat(list(sampler)).tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(*key)) for key in ((0, 0), (0, 1), (1, 0))}) == 3


def test_a_split_smaller_than_a_batch_is_one_batch():
    assert [len(batch) for batch in BatchIndices(5, 64, shuffle=True)] == [5]
    assert [len(batch) for batch in BatchIndices(5, 64, shuffle=True, rank=1, world_size=2)] == [2]


def test_a_batch_that_processes_cannot_share_is_refused():
    datamodule = data("data=digits", "data.batch_size=33")
    datamodule.trainer = SimpleNamespace(global_rank=1, world_size=2)
    with pytest.raises(UserError, match="choose a multiple of 2"):
        datamodule.train_dataloader()


def test_loading_draws_nothing_from_the_noise_stream():
    datamodule = data("data=digits", "data.image_size=8")
    datamodule.setup("fit")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    for _ in datamodule.train_dataloader():
        pass
    assert torch.equal(torch.rand(1), expected)


# ---- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "pixels", "values"),
    [
        ([], Pixels.GREY, 17),
        (["data.binarize=threshold"], Pixels.BINARY, 2),
        (["data.binarize=dynamic"], Pixels.BINARY, 2),
        (["data.dequantize=true"], Pixels.DEQUANTIZED, None),
    ],
)
def test_pixels_are_what_they_are_called(overrides, pixels, values):
    datamodule = data("data=digits", "data.image_size=8", *overrides)
    x = datamodule.examples("train", 200)
    assert datamodule.pixels is pixels
    assert (x.dtype, x.shape) == (torch.float32, (200, 1, 8, 8))
    assert 0 <= x.min() <= x.max() <= 1
    if values is not None:
        assert len(x.unique()) == values
    else:
        levels = datamodule.pool.images[datamodule.splits.train[torch.arange(200) * 1294 // 200]]
        wrong = (x * 256).floor() != levels
        assert wrong.float().mean() < 1e-3  # float32 rounds a noise of 0.9999999 up to the next level


def test_dynamic_binarization_draws_with_the_grey_level_as_probability():
    datamodule = data("data=digits", "data.image_size=8", "data.binarize=dynamic")
    levels = torch.tensor([0, 51, 204, 255], dtype=torch.uint8).view(1, 1, 1, 4).expand(20_000, 1, 1, 4)
    torch.testing.assert_close(
        datamodule.scale(levels).mean(0).flatten(), torch.tensor([0, 0.2, 0.8, 1.0]), atol=0.02, rtol=0
    )


def test_fingerprint_changes_with_data_split_and_pixels():
    base = ("data=digits", "data.image_size=8")
    variants = [(), ("data.split_seed=1",), ("data.image_size=16",), ("data.binarize=threshold",)]
    prints = {data(*base, *variant).fingerprint for variant in variants}
    assert len(prints) == 4
    assert data(*base).fingerprint == data(*base, "seed=5", "data.batch_size=7").fingerprint


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.binarize=sometimes", "none, threshold or dynamic"),
        ("data.channels=2", "grey .1. or colour .3."),
        ("data.batch_size=0", "batch_size=0"),
        ("data.val_fraction=1.5", "val_fraction=1.5"),
        ("data.binarize=threshold data.dequantize=true", "these pixels are binary"),
    ],
)
def test_impossible_data_settings_are_refused(override, words):
    with pytest.raises(InstantiationException) as caught:
        data("data=digits", *override.split())
    assert re.search(words, explain(caught.value))


# ---- folders and the store -------------------------------------------------------------------------------------------


def folder_data(root, tmp_path, *overrides: str):
    return data(
        "data=image_folder", f"data.root={root}", f"data.cache_dir={tmp_path}/cache", "data.image_size=16", *overrides
    )


def test_class_folders_flat_folders_and_published_folders(picture_folder, tmp_path):
    names = {f"{animal}/{i}.png": (20, 30, 3) for animal in ("cat", "dog") for i in range(10)}
    datamodule = folder_data(picture_folder(names), tmp_path)
    assert datamodule.pool.classes == ["cat", "dog"]
    assert datamodule.pool.labels.tolist() == [0] * 10 + [1] * 10
    assert datamodule.pool.images.shape == (20, 3, 16, 16)
    assert len(sides(datamodule.splits)) == 20

    shutil.rmtree(tmp_path / "pictures")
    flat = folder_data(picture_folder({f"{i}.jpg": (9, 9) for i in range(12)}), tmp_path, "data.channels=1")
    assert (flat.pool.classes, flat.pool.labels.unique().tolist()) == ([], [-1])

    shutil.rmtree(tmp_path / "pictures")
    names = {f"{side}/x/{i}.png": (9, 9) for i in range(8) for side in ("train", "test")}
    split_folder = folder_data(picture_folder(names), tmp_path)
    assert {split_folder.pool.names[i] for i in split_folder.splits.test} == {f"test/x/{i}.png" for i in range(8)}


def test_patients_are_read_from_file_names(picture_folder, tmp_path):
    root = picture_folder({f"scan{i}_patient{i // 4}.png": (8, 8) for i in range(40)})
    datamodule = folder_data(root, tmp_path, r"data.group_pattern='(patient\d+)'")
    found = sides(datamodule.splits)
    by_patient = {}
    for index, side in found.items():
        by_patient.setdefault(datamodule.pool.groups[index], set()).add(side)
    assert len(by_patient) == 10
    assert all(len(s) == 1 for s in by_patient.values())


def test_decoding_is_pillows(picture_folder):
    path = picture_folder({"a.png": (40, 60, 3)}) / "a.png"
    pixels, digest = decode(path, 16, 3)
    expected = Image.open(path).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(expected))
    shutil.copy(path, path.with_name("b.png"))
    assert decode(path.with_name("b.png"), 8, 1)[1] == digest


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    pixels, _ = decode(tmp_path / "deep.png", 64, 1)
    assert np.abs(pixels[0].astype(float) - ramp / 257).max() <= 1
    assert 100 < pixels.mean() < 155  # clipping leaves almost all of it white


def test_exif_orientation_is_obeyed(tmp_path):
    image = Image.fromarray(np.repeat([[0, 255]], 8, axis=0).astype(np.uint8).repeat(4, 1))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    pixels, _ = decode(tmp_path / "turned.png", 8, 1)
    assert pixels[0, 0, 0] == 255
    assert pixels[0, 0, -1] == 0


def test_store_decodes_once_and_again_when_a_file_changes(picture_folder, tmp_path, monkeypatch):
    root = picture_folder({f"{i}.png": (9, 9) for i in range(5)})
    decoded = []
    real = store.decode
    monkeypatch.setattr(store, "decode", lambda path, *rest: decoded.append(path) or real(path, *rest))

    def load():
        return open_store(root, sorted(root.glob("*")), 8, 1, tmp_path / "cache", "x", "raise")

    first, second = load(), load()
    assert len(decoded) == 5
    assert torch.equal(first.images, second.images)
    os.utime(root / "0.png", (1, 1))
    load()
    assert len(decoded) == 10
    assert not list((tmp_path / "cache").glob(".*"))


def test_bad_images_are_named_or_skipped(picture_folder, tmp_path):
    root = picture_folder({f"{i}.png": (9, 9) for i in range(20)})
    (root / "3.png").write_bytes(b"")
    truncated = (root / "7.png").read_bytes()[:60]
    (root / "7.png").write_bytes(truncated)
    with pytest.raises(UserError, match=r"(3|7)\.png.*on_bad_image=skip"):
        _ = folder_data(root, tmp_path).pool
    assert not list((tmp_path / "cache").iterdir())  # nothing half-written

    datamodule = folder_data(root, tmp_path, "data.on_bad_image=skip")
    used = {datamodule.pool.names[i] for i in sides(datamodule.splits)}
    assert used == {f"{i}.png" for i in range(20)} - {"3.png", "7.png"}
    assert "2 undecodable images skipped" in describe_data(datamodule)
    with pytest.raises(UserError, match="3.png: zero bytes"):  # also from the cache
        _ = folder_data(root, tmp_path).pool

    moved = root.rename(tmp_path / "moved")  # the cache still fits, and still knows which are broken
    elsewhere = folder_data(moved, tmp_path, "data.on_bad_image=skip")
    assert len(sides(elsewhere.splits)) == 18
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_full_disk_leaves_nothing_behind(picture_folder, tmp_path, monkeypatch):
    root = picture_folder({"0.png": (9, 9)})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left") as caught:
        open_store(root, [root / "0.png"], 8, 1, tmp_path / "cache", "x", "raise")
    assert "the disk is full" in explain(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_damaged_cache_is_named(picture_folder, tmp_path):
    root = picture_folder({f"{i}.png": (9, 9) for i in range(12)})
    _ = folder_data(root, tmp_path).pool
    (cached,) = (tmp_path / "cache").iterdir()
    (cached / "index.json").write_text("{")
    with pytest.raises(UserError, match="delete that folder"):
        _ = folder_data(root, tmp_path).pool


def test_images_of_other_channels_are_refused():
    with pytest.raises(UserError, match="data.channels=1"):
        _ = data("data=digits", "data.channels=3").pool


@pytest.mark.parametrize("pattern", [r"\d+", "(("])
def test_a_group_pattern_needs_one_group(picture_folder, tmp_path, pattern):
    with pytest.raises(InstantiationException) as caught:
        folder_data(picture_folder({"0.png": (9, 9)}), tmp_path, f"data.group_pattern='{pattern}'")
    assert "one (group)" in explain(caught.value)


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        _ = folder_data(tmp_path / "nowhere", tmp_path).pool
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image files"):
        _ = folder_data(tmp_path / "empty", tmp_path).pool
    with pytest.raises(UserError, match="Kaggle.*train/NORMAL"):
        _ = data("data=chest_xray", f"data.root={tmp_path}/nowhere").pool


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "binarized_mnist"])
def test_missing_array_data_say_where_to_put_them(name, tmp_path):
    with pytest.raises(UserError, match="data.download is false.*(Put|into)"):
        _ = data(f"data={name}", f"data.root={tmp_path}", "data.download=false").pool


# ---- the real data ---------------------------------------------------------------------------------------------------


@needs_mnist
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_mnist_and_fashion_mnist(name):
    datamodule = data(f"data={name}", f"data.root={REAL_DATA}")
    assert datamodule.splits.test.tolist() == list(range(60_000, 70_000))
    assert len(datamodule.splits.val) == pytest.approx(6_000, abs=60)
    assert len(datamodule.pool.classes) == 10
    train = {datamodule.pool.digests[i] for i in datamodule.splits.train}
    assert not train & {
        datamodule.pool.digests[i] for side in ("val", "test") for i in getattr(datamodule.splits, side)
    }


@needs_mnist
def test_damaged_mnist_is_named(tmp_path):
    shutil.copytree(REAL_DATA / "MNIST", tmp_path / "MNIST")
    images = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.chmod(0o644)
    images.write_bytes(images.read_bytes()[:10_000])
    with pytest.raises(UserError, match="damaged"):
        _ = data("data=mnist", f"data.root={tmp_path}").pool


@needs_binarized
def test_real_binarized_mnist(tmp_path):
    datamodule = data("data=binarized_mnist", f"data.root={REAL_DATA}")
    assert [len(part) for part in datamodule.splits[:3]] == [50_000, 10_000, 10_000]
    assert datamodule.pixels is Pixels.BINARY
    assert set(datamodule.pool.images.unique().tolist()) == {0, 255}
    assert data("data=binarized_mnist", f"data.root={REAL_DATA}", "data.image_size=32").pixels is Pixels.GREY
    (tmp_path / "binarized_mnist").mkdir()
    (tmp_path / "binarized_mnist" / "binarized_mnist_train.amat").write_text("0 1\n")
    with pytest.raises(UserError, match="not the published file"):
        _ = data("data=binarized_mnist", f"data.root={tmp_path}").pool


@needs_xrays
def test_real_xrays_are_split_by_patient(tmp_path):
    overrides = ("data=chest_xray", f"data.root={REAL_DATA}/chest_xray", f"data.cache_dir={tmp_path}")
    datamodule = data(*overrides, "data.image_size=32")
    images, splits = datamodule.pool, datamodule.splits
    assert len(images) == 5_840
    assert images.classes == ["NORMAL", "PNEUMONIA"]
    assert {images.names[i] for i in splits.test} == {n for n in images.names if n.startswith("test/")}
    patients = {side: {images.groups[i] for i in getattr(splits, side)} for side in ("train", "val")}
    assert not patients["train"] & patients["val"]
    contents = [{images.digests[i] for i in getattr(splits, side)} for side in ("train", "val", "test")]
    assert sum(map(len, contents)) == len(set.union(*contents))
    assert len(splits.val) == pytest.approx(522, abs=40)
    found = describe_data(datamodule)
    assert "30 sets of byte-identical images" in found
    # Numbers start again in each series: no (number, disease) pair is in both published splits.
    assert "groups also occur in the published test split" in found
    series = [
        re.search(r"(NORMAL2-IM-\d+|^IM-\d+|person\d+_\w+?)(_\d|-)", n.split("/")[-1]).group(1) for n in images.names
    ]
    tested = {series[i] for i in splits.test}
    assert not tested & {series[i] for side in (splits.train, splits.val) for i in side}
    larger = data(*overrides, "data.image_size=48").splits
    assert torch.equal(splits.val, larger.val)  # the same images whatever their size


@needs_xrays
def test_full_size_xrays_of_any_shape_and_mode_decode(tmp_path):
    root = REAL_DATA / "chest_xray_fullres"
    datamodule = data(
        "data=image_folder",
        f"data.root={root}",
        f"data.cache_dir={tmp_path}",
        "data.image_size=64",
        "data.channels=1",
    )
    assert datamodule.pool.images.shape == (24, 1, 64, 64)
    assert 60 < datamodule.pool.images.float().mean() < 180
