"""Which files of a folder are pictures, and the split, class and group of each."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.errors import InstantiationException

from src.data import folder
from src.data.layout import arrange, list_images
from src.runs.record import describe_data
from src.system.errors import UserError
from src.system.explain import explain
from tests.helpers import data, folder_data, sides

ROOT = Path("pictures")


def images(*folders: str, count: int = 3) -> list[str]:
    """Return paths of some images in each folder."""
    return [f"{folder}/{i}.png".lstrip("/") for folder in folders for i in range(count)]


def placed(*folders: str) -> tuple[dict[str, set[tuple[str, str]]], list[str]]:
    """Return split and class of each folder's images, and the notes."""
    layout = arrange(ROOT, images(*folders))
    found: dict[str, set[tuple[str, str]]] = {}
    for file, split, name in zip(layout.files, layout.published, layout.classes, strict=True):
        found.setdefault(os.path.dirname(file), set()).add((split, name))
    return {name: places.pop() for name, places in found.items() if len(places) == 1}, layout.notes


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"": ("", "")}, []),
        ({"cat": ("", "cat"), "dog": ("", "dog"), "dog/small": ("", "dog")}, []),
        ({"x": ("", "x")}, []),
        ({"train/cat": ("train", "cat"), "test/cat": ("test", "cat"), "val/cat": ("val", "cat")}, []),
        ({"Train/cat": ("train", "cat"), "TEST/cat": ("test", "cat")}, []),
        ({"training": ("train", ""), "Validation": ("val", ""), "testing": ("test", "")}, []),
        ({"train/cat": ("train", "cat"), "valid/cat": ("val", "cat")}, []),
        ({"train/cat": ("train", "cat"), "dev/cat": ("val", "cat")}, []),
        ({"": ("", ""), "test": ("test", "")}, []),
        ({"cat": ("", "cat"), "dog": ("", "dog"), "test/cat": ("test", "cat"), "test/dog": ("test", "dog")}, []),
        ({"bus": ("", "bus"), "train": ("", "train")}, ["train taken for a class: it holds images and no folders"]),
        ({"a/b/train/cat": ("train", "cat"), "a/b/test/cat": ("test", "cat")}, ["all images are in a/b/"]),
        ({"a": ("", ""), "a/cat": ("", "cat")}, ["all images are in a/"]),
    ],
)
def test_splits_and_classes_are_read_from_folders(folders, expected):
    found, notes = placed(*folders)
    assert found == folders
    assert len(notes) == len(expected)
    for note, words in zip(notes, expected, strict=True):
        assert note.startswith(words)


def test_what_lies_beside_published_splits_is_left_out_and_counted():
    """Kaggle's archive of the X-rays contains the data set twice, once within itself."""
    found, notes = placed("", "train/a", "test/a", "chest_xray/train/a", "chest_xray/test/a")
    assert found == {"train/a": ("train", "a"), "test/a": ("test", "a")}
    assert notes == ["images left out beside the splits: in no folder: 3, in chest_xray/: 6"]
    _, notes = placed("zip/train/a", "zip/test/a", "zip/zip/train/a", "zip/zip/test/a")
    assert notes == ["all images are in zip/", "images left out beside the splits: in zip/zip/: 6"]


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["train/a", "Train/a", "test/a"], r"Train/ and train/ in pictures are both the train split"),
        (["train/a", "val/a", "valid/a"], r"val/ and valid/ in pictures are both the val split"),
        (["cat/train", "cat/test", "dog/train"], r"pictures/cat holds test/ and train/ of its own.*set data.root"),
        (["x/chest/train/a", "x/chest/valid/a", "y/b"], r"pictures/x/chest holds train/ and valid/ of its own"),
    ],
)
def test_splits_that_cannot_be_told_apart_are_refused(folders, words):
    with pytest.raises(UserError, match=words):
        placed(*folders)


def test_links_are_followed_once_and_what_is_left_out_is_counted(picture_folder, tmp_path):
    names = ["cat/1.png", "cat/._1.png", "cat/2.PNG", ".hidden/1.png", "__MACOSX/cat/._1.png"]
    root = picture_folder({name: (4, 4) for name in names})
    outside = tmp_path / "elsewhere"
    shutil.copytree(root / "cat", outside)
    (root / "a_dog").symlink_to(outside)
    (root / "a_cat").symlink_to(root / "cat")  # sorts before the real one, which has the name
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "gone.png").symlink_to(root / "nothing")
    (root / "round").symlink_to(root / "round")
    for name in ("a.heic", "b.HEIC", "c.nii", "LICENSE", ".DS_Store"):
        (root / name).write_bytes(b"")
    files, notes = list_images(root)
    assert files == ["a_dog/1.png", "a_dog/2.PNG", "cat/1.png", "cat/2.PNG"]
    assert notes == [
        "files left out, by ending: .heic: 2, .nii: 1, no ending: 1",
        "links that lead to no file: 2",
        "links to folders that are read under another name: 2",
    ]


def test_a_folder_that_several_links_lead_to_has_the_shortest_name(picture_folder, tmp_path):
    """Otherwise test images would be among all the others."""
    everything = picture_folder({"x/1.png": (4, 4), "held_out/x/2.png": (4, 4)})
    root = tmp_path / "links"
    root.mkdir()
    (root / "a_train").symlink_to(everything)
    (root / "test").symlink_to(everything / "held_out")
    assert list_images(root).files == ["a_train/x/1.png", "test/x/2.png"]


@pytest.fixture
def unprivileged(picture_folder) -> Iterator[Path]:
    """Make a folder with pictures/, of which b/ and a/3.png may not be read, and give up root's rights to read them."""
    with tempfile.TemporaryDirectory() as name:
        root = shutil.copytree(
            picture_folder({f"{c}/{i}.png": (9, 9) for c in "ab" for i in range(12)}), Path(name, "pictures")
        )
        (root / "b").chmod(0)
        (root / "a" / "3.png").chmod(0)
        os.chmod(name, 0o777)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)
            (root / "b").chmod(0o755)


def test_what_may_not_be_read_is_named(unprivileged):
    with pytest.raises(UserError, match=r"3\.png: there is no permission to read it\. .*on_bad_image=skip"):
        _ = folder_data(unprivileged / "pictures", unprivileged).pool
    skipping = folder_data(unprivileged / "pictures", unprivileged, "data.on_bad_image=skip")
    assert "folders that cannot be read: b" in describe_data(skipping)
    assert len(sides(skipping.splits)) == 11


def test_the_data_line_names_classes_and_splits(picture_folder, tmp_path):
    root = picture_folder(
        {f"{side}/{c}/{i}.png": (9, 9) for side in ("Train", "valid") for c in "ab" for i in range(6)}
    )
    said = describe_data(folder_data(root, tmp_path))
    assert re.match(r"image_folder: \d+ training, \d+ validation \(published\) and \d+ test images \(carved\)", said)
    said = describe_data(folder_data(root, tmp_path, "data.val_fraction=0.1"))
    assert re.match(
        r"image_folder: \d+ training, \d+ validation \(carved\) and \d+ test images \(carved\) of 3x16x16", said
    )
    assert "12 images published for validation are split like the others (data.val_fraction=null validates on" in said

    shutil.rmtree(root)
    many = folder_data(picture_folder({f"c{i:02}/{k}.png": (9, 9) for i in range(30) for k in range(2)}), tmp_path)
    (picture_folder({"lonely.png": (9, 9)}) / "notes.txt").write_text("")
    said = describe_data(many)
    counted = re.search(r"classes \(training/validation/test\): c00 (\d)/(\d)/(\d), c01 .*, 20 more, none (\S+);", said)
    assert sum(map(int, counted.groups()[:3])) == 2
    assert sorted(counted[4]) == ["/", "/", "0", "0", "1"]
    assert "files left out, by ending: .txt: 1" in said


def test_patients_are_read_from_paths(picture_folder, tmp_path):
    root = picture_folder({f"patient{i // 4:03}/study{i % 4}/view.png": (8, 8) for i in range(40)} | {"x.png": (8, 8)})
    datamodule = folder_data(root, tmp_path, r"data.group_pattern='(patient\d+)'")
    by_patient = {}
    for index, side in sides(datamodule.splits).items():
        by_patient.setdefault(datamodule.pool.groups[index], set()).add(side)
    assert len(by_patient) == 11
    assert all(len(s) == 1 for s in by_patient.values())
    assert "40 of 41 paths match data.group_pattern: 10 groups" in describe_data(datamodule)


@pytest.mark.parametrize("pattern", [r"(person\d+)", r"(\d*)", r"(person)?"])
def test_a_group_pattern_that_finds_no_group_is_refused(picture_folder, tmp_path, pattern):
    root = picture_folder({f"{name}.png": (8, 8) for name in "abcdef"})
    with pytest.raises(UserError, match="captures nothing in any of the 6 paths below data.root, such as a.png"):
        _ = folder_data(root, tmp_path, f"data.group_pattern='{pattern}'").pool


def test_a_group_pattern_that_never_ends_is_stopped(picture_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "PATIENCE", 0.3)
    root = picture_folder({f"{'a' * 50}.png": (8, 8)})
    with pytest.raises(UserError, match=r"group_pattern='\(\(\?:a\|a\)\*\)b' takes longer than 0.3 s"):
        _ = folder_data(root, tmp_path, "data.group_pattern='((?:a|a)*)b'").pool


@pytest.mark.parametrize("pattern", [r"\d+", "(("])
def test_a_group_pattern_needs_one_group(picture_folder, tmp_path, pattern):
    with pytest.raises(InstantiationException) as caught:
        folder_data(picture_folder({"0.png": (9, 9)}), tmp_path, f"data.group_pattern='{pattern}'")
    assert "one (group)" in explain(caught.value)


def test_folders_without_images_to_train_on_are_named(picture_folder, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        _ = folder_data(tmp_path / "nowhere", tmp_path).pool
    root = picture_folder({f"test/a/{i}.png": (9, 9) for i in range(12)})
    with pytest.raises(UserError, match="test images: there is none to train on. Add a folder train/"):
        _ = folder_data(root, tmp_path).pool
    with pytest.raises(UserError, match="0.png is a file"):
        _ = folder_data(root / "test" / "a" / "0.png", tmp_path).pool
    for file in root.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 12 image files could be decoded: test/a/0.png: zero bytes"):
        _ = folder_data(root, tmp_path, "data.on_bad_image=skip").pool
    shutil.rmtree(root)
    root.mkdir()
    (root / "0.png").symlink_to(root / "nothing")
    (root / "1.nii").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"no image files \(jpg, .*\(files left out, by ending: .nii: 1; links that lead"
    ):
        _ = folder_data(root, tmp_path).pool


def test_the_xrays_are_refused_without_their_splits(picture_folder, tmp_path):
    with pytest.raises(UserError, match="Kaggle.*train/NORMAL"):
        _ = data("data=chest_xray", f"data.root={tmp_path}/nowhere").pool
    root = picture_folder({f"train/NORMAL/IM-{i}.jpeg": (9, 9) for i in range(12)})
    with pytest.raises(UserError, match="no images in test/ of .*Kaggle"):
        _ = data("data=chest_xray", f"data.root={root}", f"data.cache_dir={tmp_path}/cache").pool


def test_names_that_are_no_utf8(picture_folder, tmp_path):
    root = os.fsencode(picture_folder({f"ok/{i}.png": (9, 9) for i in range(9)}))
    os.mkdir(root + b"/caf\xe9")
    for i in range(9):
        shutil.copy(root + b"/ok/%d.png" % i, root + b"/caf\xe9/\xff%d.png" % i)
    with open(root + b"/caf\xe9/\xff0.png", "wb"):
        pass
    with pytest.raises(UserError) as caught:
        _ = folder_data(os.fsdecode(root), tmp_path).pool
    assert r"caf\xe9/\xff0.png: zero bytes" in str(caught.value)
    for _ in range(2):  # decoded, and from the cache
        datamodule = folder_data(os.fsdecode(root), tmp_path, "data.on_bad_image=skip")
        assert datamodule.pool.classes == [r"caf\xe9", "ok"]
        assert r"caf\xe9/\xff1.png" in datamodule.pool.names
        describe_data(datamodule).encode()
        assert len(datamodule.pool.names) == 18
        "".join(datamodule.pool.names).encode()
