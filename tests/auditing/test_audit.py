"""Faults that are planted in a folder are found, a clean folder has none, and areas are those of scikit-learn."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from src.auditing import alike, audit, originals
from src.system.errors import UserError
from src.system.files import refuse_inside
from tests.helpers import assert_one_line_error, cli, folder_data

SIDE = 64
PATTERN = r"data.group_pattern='(p\d+)'"


def film(rng: np.random.Generator) -> np.ndarray:
    """Draw a bright blob of random texture on a dark ground, as films are: uint8 ``[64, 64]``."""
    rows, columns = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    texture = gaussian_filter(rng.normal(size=(SIDE, SIDE)), 2)
    levels = 40 + 110 * np.exp(-2 * (rows**2 + columns**2)) + 25 * texture / texture.std()
    return levels.clip(20, 230).astype(np.uint8)


def write(root: Path, folder: str, name: str, pixels: np.ndarray, **options) -> Path:
    path = root / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def clean(root: Path, count: int = 30, seed: int = 0) -> Path:
    """Write as many films of each of two classes, in both of which they are made alike, in train/ and test/."""
    rng = np.random.default_rng(seed)
    for number in range(4 * count):
        folder = f"{('train', 'test')[number % 2]}/{('ill', 'well')[number // 2 % 2]}"
        write(root, folder, f"p{number}.png", film(rng))
    return root


def audited(root: Path, tmp_path: Path, *overrides: str) -> audit.Audit:
    return audit.audit(folder_data(root, tmp_path, "data.image_size=64", "data.channels=1", *overrides))


def files(found: audit.Audit, kind: str) -> list[set[str]]:
    """Return the file names of each image, or pair, of the findings of a kind."""
    names = found.evidence.pool.names
    of_kind = [finding for finding in found.problems if finding.kind == kind]
    return [{Path(names[i]).name for i in some} for finding in of_kind for some in finding.images]


def test_a_clean_folder_has_no_problem(tmp_path):
    found = audited(clean(tmp_path / "films"), tmp_path, PATTERN)
    assert (found.problems, found.telling) == ([], [])
    assert "no simple number tells the classes apart" in audit.words(found, [])
    assert audit.counts(found.evidence)["test"] == {"ill": 30, "well": 30}


def test_planted_faults_are_found(tmp_path):
    root, rng = clean(tmp_path / "films"), np.random.default_rng(1)
    write(root, "train/ill", "p900-negative.png", 255 - film(rng))
    write(root, "train/ill", "p901-blank.png", np.full((SIDE, SIDE), 90, np.uint8))
    write(root, "train/ill", "p902-copied.png", film(rng))
    copied = (root / "train/ill/p902-copied.png").read_bytes()
    (root / "train/well/p903-copy.png").write_bytes(copied)
    again = film(rng)
    write(root, "train/ill", "p904-first.png", again)
    write(root, "test/ill", "p905-again.png", again, compress_level=1)
    near = film(rng)
    write(root, "train/ill", "p906-near.png", near)
    write(root, "test/ill", "p907-near.jpg", near, quality=85)
    write(root, "train/ill", "p908-a.png", film(rng))
    write(root, "test/ill", "p908-b.png", film(rng))
    marked = Image.fromarray(film(rng))
    ImageDraw.Draw(marked).line([(5, 4), (5, 11), (10, 11)], fill=255, width=2)  # an L
    write(root, "train/ill", "p909-marked.png", np.asarray(marked))
    framed = film(rng)
    framed[:10], framed[:, -8:] = 0, 255
    write(root, "train/ill", "p910-framed.png", framed)
    write(root, "train/ill", "p911-coarse.png", film(rng) // 32 * 32)
    found = audited(root, tmp_path, PATTERN)

    assert files(found, "inverted") == [{"p900-negative.png"}]
    assert files(found, "blank") == [{"p901-blank.png"}]
    assert files(found, "copies") == [{"p902-copied.png", "p903-copy.png"}]
    assert files(found, "same_pixels") == [{"p904-first.png", "p905-again.png"}]
    assert files(found, "near_copies") == [{"p906-near.png", "p907-near.jpg"}]
    assert files(found, "patients") == [{"p908-a.png", "p908-b.png"}]
    assert files(found, "marks") == [{"p909-marked.png"}]
    assert files(found, "borders") == [{"p910-framed.png"}]
    assert {"p911-coarse.png"} in files(found, "levels")
    (copies,) = [finding for finding in found.problems if finding.kind == "copies"]
    assert "1 pairs of two classes" in copies.words
    (same,) = [finding for finding in found.problems if finding.kind == "same_pixels"]
    assert "1 across splits" in same.words

    paths = audit.save(found, tmp_path / "out", [])
    assert {path.name for path in paths} >= {"audit.json", "inverted.png", "near_copies.png", "features.png"}
    assert all(path.stat().st_size > 1_000 for path in paths)
    saved = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert {finding["kind"] for finding in saved["findings"] if finding["problem"]} == {f.kind for f in found.problems}


def test_a_class_of_another_size_and_quality_is_given_away_and_areas_are_those_of_scikit_learn(tmp_path):
    rng = np.random.default_rng(2)
    for number in range(60):
        image = Image.fromarray(film(rng))
        ill = number % 2
        size = (int(rng.integers(60, 80)) + 6 * ill, 64)
        write(
            tmp_path / "films",
            ("well", "ill")[ill],
            f"{number}.jpg",
            np.asarray(image.resize(size)),
            quality=90 - 50 * ill,
        )
    found = audited(tmp_path / "films", tmp_path)
    by_name = {shortcut.feature: shortcut for shortcut in found.shortcuts}
    assert by_name["file bytes"].word == "strong"
    assert by_name["aspect ratio"].areas.keys() >= {"training"}
    splits, labels = found.evidence.datamodule.splits, found.evidence.pool.labels.numpy()
    train = np.concatenate([splits.train.numpy(), splits.val.numpy()])
    for name, shortcut in by_name.items():
        positive = labels[train] == found.evidence.pool.classes.index(shortcut.positive)
        area = roc_auc_score(positive, found.features[name][train])
        assert shortcut.area.value == pytest.approx(max(area, 1 - area)), name
        assert shortcut.larger == (area > 0.5) or area == 0.5
    assert "file bytes tells" in str(by_name["file bytes"])


@pytest.mark.parametrize(
    ("cap", "words"), [("MOST", "only the first 4 images were"), ("MOST_PAIRS", "only 4 of the pairs that may be were")]
)
def test_what_is_not_compared_is_said(cap, words, monkeypatch):
    images = torch.from_numpy(film(np.random.default_rng(0)))[None, None].repeat(9, 1, 1, 1)  # 36 equal pairs
    thumbs = alike.thumbnails(images)
    pairs, left_out = alike.nearly_equal(images, torch.arange(9), *thumbs)
    assert (len(pairs), left_out) == (36, "")
    monkeypatch.setattr(alike, cap, 4)
    pairs, left_out = alike.nearly_equal(images, torch.arange(9), *thumbs)
    assert len(pairs) == {"MOST": 6, "MOST_PAIRS": 4}[cap]
    assert words in left_out


def test_classes_that_are_made_alike_are_not_told_apart(tmp_path):
    root = clean(tmp_path / "films", 40, seed=3)
    found = audited(root, tmp_path)
    assert found.shortcuts
    assert not found.telling
    assert all(shortcut.area.low <= 0.5 + 0.06 for shortcut in found.shortcuts)


def test_bits_colour_and_turned_pictures_of_a_file(tmp_path):
    rng = np.random.default_rng(4)
    deep = write(tmp_path, "a", "deep.png", rng.integers(0, 4096, (20, 30), dtype=np.uint16))
    one = originals.read(str(deep))
    assert (one.kind, one.width, one.height, one.top.bit_length()) == ("PNG, 16-bit grey", 30, 20, 12)
    grey = originals.read(str(write(tmp_path, "a", "grey.png", np.repeat(film(rng)[..., None], 3, 2))))
    assert (grey.colour, grey.grey) == (True, True)
    ramp = np.linspace(-1, 1, 600).reshape(20, 30)
    decimals = originals.read(str(write(tmp_path, "a", "decimals.tif", ramp.astype(np.float32))))
    assert (decimals.kind, decimals.top, decimals.levels) == ("TIFF, 32-bit grey", None, 600)
    assert decimals.border < 0.1  # its negative half is no border
    wide = originals.read(str(write(tmp_path, "a", "wide.tif", (ramp * 1e6).astype(np.int32))))
    assert (wide.kind, wide.top) == ("TIFF, 32-bit grey", 1_000_000)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = originals.read(str(write(tmp_path, "a", "turned.jpg", film(rng)[:40], exif=exif)))
    assert (turned.width, turned.height, turned.turned) == (40, 64, True)
    (tmp_path / "broken.png").write_bytes(io.BytesIO(b"no picture").getvalue())
    assert originals.read(str(tmp_path / "broken.png")) is None


def test_nothing_is_written_below_the_images(tmp_path):
    with pytest.raises(UserError, match="lies in data.root, where nothing is written"):
        refuse_inside(tmp_path / "films" / "audit", tmp_path / "films", "data.root")
    refuse_inside(tmp_path / "out", tmp_path / "films", "data.root")


def test_the_command_finds_faults_and_ends_well_and_arrays_have_no_files(tmp_path):
    done = cli("data=digits", "data.image_size=8", f"folder={tmp_path}/out", module="src.audit")
    assert done.returncode == 0, done.stdout
    assert "these images are no files" in done.stdout
    saved = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert saved["images"] == 1797
    assert {area["feature"] for area in saved["features"]} >= {"brightness", "contrast", "JPEG bytes at 8 px"}
    done = cli("data=image_folder", "data.root=nowhere", module="src.audit")
    assert_one_line_error(done, "there is no folder nowhere")
