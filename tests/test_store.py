"""Folders of pictures and the store of decoded ones; what is said of broken data."""

import errno
import os
import shutil

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from PIL import Image

from src.data import store
from src.data.decoding import Bad, decode
from src.data.store import open_store
from src.errors import UserError, explain
from src.record import describe_data
from tests.helpers import data, folder_data, sides


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
        return open_store(root, sorted(os.listdir(root)), 8, 1, tmp_path / "cache", "x", "raise")

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
        open_store(root, ["0.png"], 8, 1, tmp_path / "cache", "x", "raise")
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


def test_floating_point_pixels_are_refused_in_words(tmp_path):
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="floating-point numbers: save it with 8 or 16 bits"):
        decode(tmp_path / "a.tiff", 8, 1)
