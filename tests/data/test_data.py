"""Test the real data sets if they are present."""

import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from src.data.pixels import Pixels
from src.runs.record import describe_data
from src.system.errors import UserError
from tests.helpers import REAL_DATA, data, needs_binarized, needs_mnist, needs_xrays


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


def write_mnist(root: Path, images: int = 20, labels: int = 20) -> Path:
    """Write files in MNIST's format with random content, which torchvision accepts."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (images, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, images, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, labels) + bytes(labels))
    return raw


def test_files_of_another_data_set_are_refused_as_mnist(tmp_path):
    write_mnist(tmp_path)
    words = ("data=mnist", f"data.root={tmp_path}", "data.download=false")
    with pytest.raises(UserError, match="not the published ones; data.checksum=null takes them as they are"):
        _ = data(*words).pool
    assert len(data(*words, "data.checksum=null").pool) == 40


def test_truncated_files_and_web_pages_are_damaged(tmp_path):
    raw = write_mnist(tmp_path, labels=19)
    words = ("data=mnist", f"data.root={tmp_path}", "data.download=false", "data.checksum=null")
    with pytest.raises(UserError, match="20 images and 19 labels"):
        _ = data(*words).pool
    (raw / "train-images-idx3-ubyte").write_bytes((raw / "train-images-idx3-ubyte").read_bytes()[:999])
    with pytest.raises(UserError, match="cannot be used .damaged: shape"):
        _ = data(*words).pool
    (raw / "train-images-idx3-ubyte").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="cannot be used .damaged: AssertionError"):
        _ = data(*words).pool


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
    # Patient numbers restart in each series: no (number, disease) pair is in both published splits.
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
