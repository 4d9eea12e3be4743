"""Broken and unusual image files, in a data set of good ones and as ``images=`` of ``src.explore``."""

import os
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from src.system.files import quoted
from tests.torture.commands import QUIET, Settings, at_once, run
from tests.torture.looks import answered, changed, listing
from tests.torture.table import Case, typed

FORMATS = ("png", "jpg", "tiff", "bmp", "gif", "webp", "ppm")
GOOD = 24  # good pictures in each data set


def _random(path: Path, shape: tuple[int, ...] = (20, 20), seed: int = 0, **options: object) -> bytes:
    """Save a random picture, and return the bytes of the file."""
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path.read_bytes()


def _damaged(kind: str, how: Callable[[bytearray, random.Random], bytes]) -> Callable[[Path, random.Random], Path]:
    def make(folder: Path, rng: random.Random) -> Path:
        path = folder / f"bad.{kind}"
        path.write_bytes(how(bytearray(_random(path)), rng))
        return path

    return make


def _flipped(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 3, 10, 40))):
        place = int(len(data) * rng.random() ** 2)  # more often in the header
        data[place] ^= 1 << rng.randrange(8)
    return bytes(data)


def _cut(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(1, len(data))])


def _huge_png(folder: Path, rng: random.Random) -> Path:
    """Write a PNG whose header announces 100,000 x 100,000 pixels."""
    path = folder / "bad.png"
    data = bytearray(_random(path))
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(bytes(data))
    return path


def _named(name: bytes) -> Callable[[Path, random.Random], Path]:
    def make(folder: Path, rng: random.Random) -> Path:
        _random(folder / "x.png")
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.rename(folder / "x.png", path)
        return Path(os.fsdecode(path))

    return make


def _written(name: str, data: bytes) -> Callable[[Path, random.Random], Path]:
    def make(folder: Path, rng: random.Random) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def _saved(
    name: str, make_image: Callable[[], Image.Image], **options: object
) -> Callable[[Path, random.Random], Path]:
    def make(folder: Path, rng: random.Random) -> Path:
        make_image().save(folder / name, **options)
        return folder / name

    return make


def _linked(target: str) -> Callable[[Path, random.Random], Path]:
    def make(folder: Path, rng: random.Random) -> Path:
        (folder / "bad.png").symlink_to(target)
        return folder / "bad.png"

    return make


def _folder(folder: Path, rng: random.Random) -> Path:
    (folder / "bad.png").mkdir()
    return folder / "bad.png"


def _pipe(folder: Path, rng: random.Random) -> Path:
    os.mkfifo(folder / "bad.png")
    return folder / "bad.png"


def _exif(data: bytes) -> Callable[[Path, random.Random], Path]:
    def make(folder: Path, rng: random.Random) -> Path:
        _random(folder / "bad.jpg", exif=b"Exif\0\0" + data)
        return folder / "bad.jpg"

    return make


TIFF = b"II*\0\x08\0\0\0"
ODD: dict[str, Callable[[Path, random.Random], Path]] = {
    "empty": _written("bad.png", b""),
    "garbage": _written("bad.jpg", bytes(range(256)) * 9),
    "text": _written("bad.png", "no picture é\n".encode()),
    "svg": _written("bad.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "zeros": _written("bad.tiff", bytes(4096)),
    "huge header": _huge_png,
    "png called jpg": lambda folder, rng: (_random(folder / "x.png"), (folder / "x.png").rename(folder / "x.jpg"))[1],
    "1 pixel wide": _saved("thin.png", lambda: Image.new("L", (1, 999), 90)),
    "1 pixel": _saved("one.png", lambda: Image.new("RGB", (1, 1))),
    "very wide": _saved("wide.png", lambda: Image.new("L", (60_000, 1), 90)),
    "16 bit": _saved("deep.png", lambda: Image.fromarray(np.full((9, 9), 40_000, np.uint16))),
    "32-bit integers": _saved("deep.tiff", lambda: Image.fromarray(np.full((9, 9), 2**20, np.int32))),
    "floats": _saved("float.tiff", lambda: Image.fromarray(np.full((9, 9), np.nan, np.float32))),
    "1 bit": _saved("bit.png", lambda: Image.new("1", (9, 9), 1)),
    "transparent": _saved("clear.png", lambda: Image.new("RGBA", (9, 9), (255, 0, 0, 0))),
    "palette": _saved("palette.gif", lambda: Image.new("P", (9, 9), 3)),
    "CMYK": _saved("cmyk.jpg", lambda: Image.new("CMYK", (9, 9))),
    "orientation 9": _exif(TIFF + b"\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0"),
    "orientation as text": _exif(TIFF + b"\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"),
    "exif cut off": _exif(TIFF + b"\xff\xff"),
    "exif that points nowhere": _exif(b"II*\0\xff\xff\xff\x7f"),
    "exif in a circle": _exif(TIFF + b"\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"),
    "name not UTF-8": _named(b"caf\xe9.png"),
    "bad file, name not UTF-8": lambda folder, rng: _zero(_named(b"caf\xe9.png")(folder, rng)),
    "class not UTF-8": _named(b"d\xfcnn/a.png"),
    "name with dollars": _named(b"$a_{$b.png"),
    "class with dollars": _named(b"$HOME $x$/${seed}.png"),
    "name with a line break": _named(b"a\nb.png"),
    "name with quotes": _named(b"a'\"`;#.png"),
    "name in braces": _named("{0}%s[1]=🙂.png".encode()),
    "very long name": _named(b"n" * 240 + b".png"),
    "hidden": _named(b".hidden.png"),
    "link to nowhere": _linked("nowhere.png"),
    "link to itself": _linked("bad.png"),
    "folder called bad.png": _folder,
    "pipe called bad.png": _pipe,
}


def _zero(path: Path) -> Path:
    path.write_bytes(b"\0\0")
    return path


def makers(settings: Settings) -> dict[str, Callable[[Path, random.Random], Path]]:
    """Map the names of all bad files to the functions that write them."""
    made = dict(ODD)
    for number in range(max(1, round(4 * settings.count))):
        for kind in FORMATS:
            made[f"{kind} with flipped bits {number}"] = _damaged(kind, _flipped)
            if number < 2:
                made[f"{kind} cut off {number}"] = _damaged(kind, _cut)
    return made


def cases(settings: Settings) -> Iterator[Case]:
    """Try each bad file among good ones, with ``on_bad_image`` raise and skip, and as ``images=``."""
    run_folder = settings.folder / "of-pictures"
    plain = _good(settings.folder / "good")
    done = run(_training(plain, settings.folder / "cache", run_folder, "raise"))
    if done.status != 0:
        raise RuntimeError(done.output)

    def try_it(name: str) -> list[Case]:
        folder = settings.folder / "pictures-bad" / re.sub(r"\W+", "_", name)
        bad = makers(settings)[name](_good(folder / "pictures"), settings.random(name))
        found = []
        for how, words, module, result in (
            (
                "raise",
                _training(folder / "pictures", folder / "cache", folder / "raise", "raise"),
                "src.train",
                "raise",
            ),
            ("skip", _training(folder / "pictures", folder / "cache", folder / "skip", "skip"), "src.train", "skip"),
            ("images=", [f"run={run_folder}", f"images={quoted(bad)}", "figures=[]"], "src.explore", None),
        ):
            before = listing(folder / "pictures") if bad.is_file() else {}
            done = run(words, module, limit=60)
            faults = answered(done, folder / result if result else None)
            faults += changed(before, folder / "pictures") if before else []
            if how == "skip" and done.status:
                faults.append("on_bad_image=skip did not skip the file")
            command = typed([word.encode(errors="backslashreplace").decode() for word in words], module)
            found.append(Case("inputs: pictures", f"{name}, {how}", command, faults, done.output))
        return found

    for found in at_once(settings.jobs, try_it, makers(settings)):
        yield from found


def _training(root: Path, cache: Path, run_folder: Path, on_bad_image: str) -> list[str]:
    small = ("model=conv_tiny", "data=image_folder", "data.channels=1", "data.image_size=16", "data.batch_size=4")
    places = (f"data.root={root}", f"data.cache_dir={cache}", f"hydra.run.dir={run_folder}")
    pictures = [word for word in QUIET if word != "~callbacks.figures"]  # figures draw names and classes
    return [*small, "trainer=debug", *pictures, *places, f"data.on_bad_image={on_bad_image}"]


def _good(folder: Path) -> Path:
    (folder / "a").mkdir(parents=True)
    for number in range(GOOD):
        _random(folder / "a" / f"{number:02}.png", seed=number)
    return folder
