"""Pictures become squares: stretched, with black beside them, or their middle."""

import json

import numpy as np
import pytest
from PIL import Image

from src.data import cache
from src.data.folder import FolderDataModule
from src.data.picture import Treatment, decode
from src.exploration import own_images
from src.runs.trust import read_saved_config
from src.system.errors import UserError
from tests.helpers import composed, folder_data

BRIGHT, DARK = 200, 60
UPRIGHT = np.full((8, 16), BRIGHT, np.uint8)  # 16 wide, 8 high: bright, with a dark quarter at the left
UPRIGHT[:, :4] = DARK
EXPECTED = {
    "stretch": np.repeat([[DARK] * 2 + [BRIGHT] * 6], 8, 0),
    "pad": np.pad(np.repeat([[DARK] * 2 + [BRIGHT] * 6], 4, 0), ((2, 2), (0, 0))),
    "crop": np.full((8, 8), BRIGHT),
}
TURNS = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def save(path, orientation: int):
    """Save the picture turned, with the EXIF that turns it upright again."""
    image = Image.fromarray(UPRIGHT)
    if TURNS[orientation] is not None:
        image = image.transpose(TURNS[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(exist_ok=True)
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("fit", EXPECTED)
@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("channels", [1, 3])
def test_geometry_after_the_exif(fit, orientation, channels, tmp_path):
    path = save(tmp_path / "a.png", orientation)
    pixels = decode(path, 8, channels, Treatment(fit)).pixels
    assert pixels.shape == (channels, 8, 8)
    expected = EXPECTED[fit].astype(int)
    blurred = [1, 2] if fit != "crop" else []  # halving the width blurs one edge
    kept = [i for i in range(8) if i not in blurred]
    assert np.array_equal(pixels[:, :, kept], np.broadcast_to(expected[:, kept], (channels, 8, len(kept))))


@pytest.mark.parametrize(("shape", "place"), [((100, 1), (slice(None), slice(3, 4))), ((1, 100), (slice(3, 4),))])
def test_a_line_is_padded_to_a_line(shape, place, tmp_path):
    Image.fromarray(np.full(shape, 255, np.uint8)).save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png", 8, 1, Treatment("pad")).pixels[0]
    expected = np.zeros((8, 8))
    expected[place] = 255
    assert np.array_equal(pixels, expected)
    assert (decode(tmp_path / "a.png", 8, 1, Treatment("crop")).pixels == 255).all()


@pytest.mark.parametrize("fit", EXPECTED)
def test_a_large_jpeg_is_drafted_with_any_fit(fit, tmp_path):
    """It is decoded at a fraction of its size: the same picture as from a PNG of it, within the filter's difference."""
    rows, columns = np.mgrid[0:600, 0:900]
    image = Image.fromarray((127 + 60 * np.sin(rows / 90) + 60 * np.cos(columns / 120)).astype(np.uint8))
    image.save(tmp_path / "a.jpg", quality=98)
    image.save(tmp_path / "a.png")
    jpeg, png = (decode(tmp_path / f"a.{kind}", 32, 1, Treatment(fit)).pixels.astype(int) for kind in ("jpg", "png"))
    assert np.abs(jpeg - png).max() <= 6


def test_a_padded_negative_is_black_beside_the_picture(tmp_path):
    path = save(tmp_path / "a.png", 1)
    plain, negative = (decode(path, 8, 1, Treatment("pad", invert=invert)).pixels[0] for invert in (False, True))
    assert (negative[[0, 1, 6, 7]] == 0).all()
    assert np.array_equal(negative[2:6], 255 - plain[2:6])


def fitted(root, tmp_path, *overrides):
    return folder_data(root, tmp_path, "data.channels=1", "data.image_size=8", *overrides)


def test_a_fit_has_its_own_cache_and_fingerprint_and_holds_for_other_pictures(picture_folder, tmp_path):
    root = picture_folder({f"{i:02d}.png": (20, 30) for i in range(12)})
    modules = {fit: fitted(root, tmp_path, f"data.fit={fit}") for fit in EXPECTED}
    fingerprints = {fit: module.fingerprint for fit, module in modules.items()}
    assert len(set(fingerprints.values())) == 3
    assert len([*(tmp_path / "cache").iterdir()]) == 3
    assert fitted(root, tmp_path).fingerprint == fingerprints["stretch"]
    assert modules["stretch"].pool.treatment == {}
    assert modules["pad"].pool.treatment == {"fit": "pad"}
    path = save(tmp_path / "own" / "a.png", 6)
    for fit, module in modules.items():
        taken = own_images.read(str(path), module).levels[0]
        assert np.array_equal(taken, decode(path, 8, 1, Treatment(fit)).pixels)
    inverted = own_images.read(str(path), modules["pad"], invert=True).levels[0, 0]
    assert (inverted[[0, 1, 6, 7]] == 0).all()


def test_the_range_of_a_run_holds_for_other_pictures(tmp_path):
    ramp = np.linspace(0, 1, 64).reshape(8, 8).astype(np.float32)
    (tmp_path / "films").mkdir()
    for i in range(12):
        Image.fromarray(ramp * (i + 1) / 12).save(tmp_path / "films" / f"{i:02d}.tif")
    for _ in range(2):  # decoded, then from the cache
        module = fitted(tmp_path / "films", tmp_path)
        assert module.pool.treatment == {"range": [0.0, 1.0]}
        assert "grey of more than 8 bits read with one range, 0 to 1: 12 files" in module.pool.notes
        assert module.pool.images.max() == 255
    (tmp_path / "others").mkdir()
    for i in range(12):
        Image.fromarray(ramp * (i + 1) / 24).save(tmp_path / "others" / f"{i:02d}.tif")
    others = fitted(tmp_path / "others", tmp_path, "data.fit=pad")
    others.read_as(module.pool.treatment)
    assert others.pool.images.max() == 128
    assert others.pool.treatment == {"range": [0.0, 1.0], "fit": "pad"}
    Image.fromarray(ramp / 2).save(tmp_path / "half.tif")
    assert own_images.read(str(tmp_path / "half.tif"), module).levels.max() == 128


def test_fingerprints_of_earlier_versions_stay_valid(picture_folder, tmp_path):
    """Those of version 15a6123, of the same files."""
    root = picture_folder({f"{i:02d}.png": (20, 30) for i in range(12)})
    for i in range(12):
        Image.fromarray((np.arange(600).reshape(20, 30) * 6 + i).astype(np.uint16)).save(root / f"deep{i}.png")
    module = fitted(root, tmp_path)
    assert module.fingerprint == "28c28eaf2adeecfd4389523a417886d2"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["image_folder-8px-d1dc6bb03928b38b"]


def test_what_an_earlier_version_could_not_read_is_tried_again(tmp_path):
    """It left decimals out, and remembered so."""
    (tmp_path / "films").mkdir()
    for i in range(12):
        Image.fromarray(np.eye(8, dtype=np.float32) + i).save(tmp_path / "films" / f"{i:02d}.tif")
    assert len(fitted(tmp_path / "films", tmp_path).splits.notes) == 0
    (folder,) = (tmp_path / "cache").iterdir()
    index = json.loads((folder / "index.json").read_text())
    earlier = ("depth", "largest", "deep", "brightest", "transparent", "frames", "bad")
    index["found"] = {key: index["found"][key] for key in earlier} | {"bad": {"3": "floating-point numbers. Save it"}}
    index["sum"] = cache._sum(np.load(folder / "digests.npy"), index)
    (folder / "index.json").write_text(json.dumps(index))
    module = fitted(tmp_path / "films", tmp_path, "data.on_bad_image=skip")
    assert (module.pool.published != "skipped").all()
    assert module.pool.treatment == {"range": [0.0, 12.0]}


@pytest.mark.parametrize("source", ["digits", "mnist", "binarized_mnist"])
def test_arrays_have_no_such_key(source):
    with pytest.raises(Exception, match="Could not override 'data.fit'"):
        composed(f"data={source}", "data.fit=pad")


def test_another_word_is_refused(tmp_path):
    common = {"name": "films", "image_size": 8, "channels": 1, "batch_size": 2}
    with pytest.raises(UserError, match="data.fit=squash: give one of stretch, pad, crop"):
        FolderDataModule(root=str(tmp_path), cache_dir=str(tmp_path), fit="squash", **common)


@pytest.mark.parametrize(
    ("target", "fit"), [("src.data.folder.FolderDataModule", "stretch"), ("src.data.arrays.DigitsDataModule", None)]
)
def test_a_run_without_the_key_was_stretched(target, fit, tmp_path):
    (tmp_path / "config.yaml").write_text(f"data:\n  _target_: {target}\nmodel: {{}}\n")
    assert read_saved_config(tmp_path / "config.yaml").data.get("fit") == fit
