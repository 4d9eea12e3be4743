"""The store of decoded pictures, and messages about broken data."""

import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch

from src.data import cache as caches
from src.data import decoding, store
from src.data.store import Store, open_store
from src.runs.record import describe_data
from src.system.errors import UserError
from src.system.explain import explain
from src.system.processes import Process
from tests.helpers import WARM, data, folder_data, sides


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Record the names of decoded files."""
    files: list[str] = []
    real = decoding.decode
    monkeypatch.setattr(
        decoding, "decode", lambda path, *rest: files.append(os.path.basename(path)) or real(path, *rest)
    )
    return files


def load(root: Path, cache: Path) -> Store:
    return open_store(root, sorted(os.listdir(root)), 8, 1, cache, "x", "raise")


def test_store_decodes_once_and_again_when_a_file_changes(picture_folder, tmp_path, decoded):
    root = picture_folder({f"{i}.bmp": (9, 9) for i in range(5)})
    first, second = load(root, tmp_path / "cache"), load(root, tmp_path / "cache")
    assert len(decoded) == 5
    assert torch.equal(first.images, second.images)

    os.utime(root / "0.bmp", (1, 1))  # as if copied
    load(root, tmp_path / "cache")
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    assert load(tmp_path / "copy", tmp_path / "cache").digests == first.digests
    shutil.move(tmp_path / "copy", tmp_path / "moved")
    load(tmp_path / "moved", tmp_path / "cache")
    assert len(decoded) == 5

    content = bytearray((root / "0.bmp").read_bytes())
    content[-2] ^= 255
    (root / "0.bmp").write_bytes(content)
    third = load(root, tmp_path / "cache")
    assert len(decoded) == 10
    assert third.digests[0] != first.digests[0]
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_folder_with_the_same_names_sizes_and_times_has_its_own_images(picture_folder, tmp_path):
    """An archive gives all its files one time, and uncompressed files one size."""
    one = picture_folder({f"{i}.bmp": (90, 90) for i in range(5)}).rename(tmp_path / "one")
    other = picture_folder({f"{i}.bmp": (90, 90) for i in range(5)}, seed=1)
    for file in (*one.iterdir(), *other.iterdir()):
        os.utime(file, (1, 1))
    stores = [load(root, tmp_path / "cache") for root in (one, other, one, other)]
    assert stores[0].digests == stores[2].digests != stores[1].digests == stores[3].digests
    assert not torch.equal(stores[0].images, stores[1].images)
    assert torch.equal(stores[1].images, stores[3].images)


@pytest.mark.parametrize("seconds", [0.0, 0.002])
def test_a_remote_disk_is_read_by_many_threads(seconds, tmp_path, monkeypatch):
    """A fast disk is read by one; the facts are the same."""
    monkeypatch.setattr(store, "TRIED", 20)
    for i in range(200):
        (tmp_path / f"{i}.png").write_bytes(bytes([i]) * (10 * i))
    paths, asking, real = store.Paths(tmp_path, [f"{i}.png" for i in range(200)]), set(), store._size_time_sample
    alone = [real(path) for path in paths]

    def slowly(path: str) -> tuple[int, int, bytes]:
        asking.add(threading.get_ident())
        time.sleep(seconds)
        return real(path)

    monkeypatch.setattr(store, "FAR", 1e-3 if seconds else 1.0)
    monkeypatch.setattr(store, "_size_time_sample", slowly)
    facts = store._facts(paths)
    assert [*zip(facts.sizes, facts.times, strict=True)] == [fact[:2] for fact in alone]
    assert len({bytes(mark) for mark in facts.marks}) == 200
    assert (len(asking) > 3) if seconds else (len(asking) == 2)


def test_an_edit_between_the_samples_is_seen_by_its_time(picture_folder, tmp_path):
    root = picture_folder({"0.bmp": (900, 900)})
    before = load(root, tmp_path / "cache")
    content = bytearray((root / "0.bmp").read_bytes())
    content[5_000] ^= 255
    (root / "0.bmp").write_bytes(content)
    assert load(root, tmp_path / "cache").digests != before.digests


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
    assert "not decoded: 3.png (zero bytes), 7.png (" in describe_data(datamodule)
    with pytest.raises(UserError, match="3.png: zero bytes"):  # also from the cache
        _ = folder_data(root, tmp_path).pool

    moved = root.rename(tmp_path / "moved")  # the cache still fits, and still knows which are broken
    elsewhere = folder_data(moved, tmp_path, "data.on_bad_image=skip")
    assert len(sides(elsewhere.splits)) == 18
    assert len(list((tmp_path / "cache").iterdir())) == 1


def started(root: Path, cache: Path, output: IO, **env: str) -> Process:
    """Start a process that reads a folder."""
    words = ("data=image_folder", f"data.root={root}", f"data.cache_dir={cache}", "data.image_size=16")
    return WARM.start("tests.pools", words, {**os.environ, **env}, output)


@pytest.mark.parametrize("locks", [True, False])
def test_processes_that_start_together_decode_once(locks, picture_folder, tmp_path):
    """Without file locks each decodes by itself, with the same result."""
    root, cache = picture_folder({f"{i}.png": (9, 9) for i in range(60)}), tmp_path / "cache"
    with tempfile.TemporaryFile("w+") as output:
        env = {"SLOW": "0.05"} if locks else {"SLOW": "0.05", "NO_LOCKS": "1"}
        both = [started(root, cache, output, **env) for _ in range(2)]
        assert [process.wait(120) for process in both] == [0, 0]
        output.seek(0)
        said = output.read()
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert sorted(one.pop("decoded") for one in found) == ([0, 60] if locks else [60, 60])
    assert found[0] == found[1]
    (folder,) = cache.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["digests.npy", "images.npy", "index.json"]


def test_who_waits_for_a_decoding_says_so_once(picture_folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root, cache = picture_folder({"0.png": (9, 9)}), tmp_path / "cache"
    load(root, cache)
    (folder,) = cache.iterdir()
    shutil.rmtree(folder)
    waiting = threading.Thread(target=load, args=(root, cache))
    with caches.turn_to_build(folder, "") as alone:
        assert alone
        waiting.start()
        while not caplog.messages:
            assert waiting.is_alive()
            time.sleep(0.02)
        assert not folder.exists()
    waiting.join()
    assert caplog.messages == ["x: waiting for another process, which decodes the same images"]
    assert [*cache.iterdir()] == [folder]


@pytest.mark.parametrize("size", [16, 8])
def test_what_a_killed_decoding_has_left_goes_with_the_next(size, picture_folder, tmp_path):
    """The next decoding removes it, of the same images and of others."""
    root, cache = picture_folder({f"{i}.png": (9, 9) for i in range(60)}), tmp_path / "cache"
    with tempfile.TemporaryFile("w+") as output:
        killed = started(root, cache, output, SLOW="5")
        while not list(cache.glob(".decoding-*/new/images.npy")):
            assert killed.poll() is None, output.seek(0) or output.read()
            time.sleep(0.02)
        open_store(root, ["0.png"], 8, 1, cache, "x", "raise")  # other processes do not touch it meanwhile
        assert list(cache.glob(".decoding-*/new/images.npy"))
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait(60)
    assert len(list(cache.glob(".decoding-*"))) == 2  # the folder, and its lock
    assert len(folder_data(root, tmp_path, f"data.image_size={size}").pool) == 60
    assert len(list(cache.iterdir())) == 2
    assert not list(cache.glob(".*"))


def test_without_locks_only_what_is_old_was_left(picture_folder, tmp_path, monkeypatch):
    root, cache = picture_folder({"0.png": (9, 9)}), tmp_path / "cache"
    for name in ("killed", "at work"):
        (cache / f".decoding-{name}").mkdir(parents=True)
    os.utime(cache / ".decoding-killed", (1, 1))

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    load(root, cache)
    assert [path.name for path in cache.glob(".*")] == [".decoding-at work"]
    monkeypatch.undo()
    load(picture_folder({"1.png": (9, 9)}), cache)
    assert not list(cache.glob(".*"))


def test_a_full_disk_leaves_nothing_behind(picture_folder, tmp_path, monkeypatch):
    root = picture_folder({"0.png": (9, 9)})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left") as caught:
        open_store(root, ["0.png"], 8, 1, tmp_path / "cache", "x", "raise")
    assert "the disk is full" in explain(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def cut_images(folder: Path) -> None:
    os.truncate(folder / "images.npy", 200)


def other_shape(folder: Path) -> None:
    np.save(folder / "images.npy", np.zeros((12, 1, 9, 9), np.uint8))


def cut_header(folder: Path) -> None:
    content = (folder / "images.npy").read_bytes()
    (folder / "images.npy").write_bytes(content.replace(b"}", b"{", 1))


def other_bits(folder: Path) -> None:
    index = (folder / "index.json").read_text()
    (folder / "index.json").write_text(index.replace('"frames": 0', '"frames": 3'))


def fewer_digests(folder: Path) -> None:
    np.save(folder / "digests.npy", np.load(folder / "digests.npy")[1:])


def other_digests(folder: Path) -> None:
    np.save(folder / "digests.npy", np.load(folder / "digests.npy")[::-1])


@pytest.mark.parametrize(
    "damage",
    [
        cut_images,
        cut_header,
        other_shape,
        other_bits,
        fewer_digests,
        other_digests,
        lambda folder: (folder / "images.npy").unlink(),
        lambda folder: (folder / "images.npy").write_bytes(b""),
        lambda folder: (folder / "index.json").unlink(),
        lambda folder: (folder / "digests.npy").unlink(),
        *(
            lambda folder, text=text: (folder / "index.json").write_text(text)
            for text in ("{", "{}", "[]", "7", "null")
        ),
    ],
)
def test_a_damaged_cache_is_made_anew(damage, picture_folder, tmp_path, caplog):
    root = picture_folder({f"{i}.png": (9, 9) for i in range(12)})
    before = load(root, tmp_path / "cache")
    expected = before.images.clone()
    (folder,) = (tmp_path / "cache").iterdir()
    damage(folder)
    for _ in range(2):
        after = load(root, tmp_path / "cache")
        assert torch.equal(after.images, expected)
        assert after.digests == before.digests
    assert len(caplog.records) == 1  # the second time it is whole
    assert f"the image cache {folder} is damaged" in caplog.text
    assert [*(tmp_path / "cache").iterdir()] == [folder]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOMEM, errno.ESTALE])
def test_a_cache_that_cannot_be_read_now_is_not_taken_for_damaged(code, picture_folder, tmp_path, monkeypatch):
    """An earlier version decoded it anew and replaced it."""
    root = picture_folder({f"{i}.png": (9, 9) for i in range(3)})
    load(root, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    before = {path: path.stat().st_ino for path in folder.iterdir()}

    def fails(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(np, "load", fails)
    with pytest.raises(OSError, match=os.strerror(code)):
        load(root, tmp_path / "cache")
    assert {path: path.stat().st_ino for path in folder.iterdir()} == before


def test_images_of_other_channels_are_refused():
    with pytest.raises(UserError, match="data.channels=1"):
        _ = data("data=digits", "data.channels=3").pool


@pytest.mark.parametrize("code", [None, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_space_is_claimed_where_the_system_cannot_promise_it(code, picture_folder, tmp_path, monkeypatch):
    root = picture_folder({f"{i}.png": (9, 9) for i in range(3)})
    expected = load(root, tmp_path / "promised").images

    def refuses(*_):
        raise OSError(code, os.strerror(code))

    if code is None:  # macOS
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuses)
    assert torch.equal(load(root, tmp_path / "written").images, expected)
    (tmp_path / "file").write_bytes(b"head")
    os.truncate(tmp_path / "file", 3 * 2**20)
    caches._claim(tmp_path / "file", 4)
    assert (tmp_path / "file").stat().st_blocks * 512 >= 3 * 2**20
    assert (tmp_path / "file").read_bytes() == b"head".ljust(3 * 2**20, b"\0")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "binarized_mnist"])
def test_missing_array_data_say_where_to_put_them(name, tmp_path):
    with pytest.raises(UserError, match="data.download is false.*(Put|into)"):
        _ = data(f"data={name}", f"data.root={tmp_path}", "data.download=false").pool
