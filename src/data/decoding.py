"""From image files to pixels: decode every kind of picture as a viewer shows it."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from src.data.splits import content_digest
from src.system.console import progress
from src.system.machine import processors

DRAFT = 4  # a JPEG this many times larger is decoded at a half, a quarter or an eighth of its size
AT_A_TIME = 32  # files that a thread takes at once, at most; one by one, threads wait for each other
DEPTHS = (8, 10, 12, 14, 16)  # bits of grey of detectors and scanners
DEEPEST = DEPTHS[-1]
DIM = 64  # levels of 255 below which files look as if their 14 bits or fewer were read as 16
UPRIGHT = {  # the transposition that turns a picture upright, by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE_IS_ZERO, PHOTOMETRIC = 0, 262  # TIFF: value and number of the tag


class Decoded(NamedTuple):
    """The content of one file."""

    pixels: np.ndarray  # uint8 [C, S, S]
    largest: int | None  # grey level, if the file has more than 8 bits of grey
    # Level of its upper 8 bits, if it has 16 bits of colour: Pillow reads no more of them,
    # https://github.com/python-pillow/Pillow/issues/1888
    brightest: int | None
    transparent: bool  # whether parts of it are transparent
    digest: bytes = b""  # of the file's bytes
    frames: bool = False  # whether there are more frames than the first, which is decoded


class Bad(Exception):
    """A file that cannot be decoded; the message says what is wrong, then in a second sentence what to do."""


class Found(NamedTuple):
    """Facts about several files besides their pixels."""

    depth: int | None  # bits that grey of more than 8 bits is read with; None if no file has such grey
    largest: int | None  # grey level of those files
    deep: int  # how many these are
    brightest: int | None  # level of the upper 8 bits of files with 16 bits of colour
    transparent: int  # files with transparent parts
    frames: int  # files with more than the one frame that is taken
    bad: dict[int, str]  # position of each file that cannot be decoded: why, and what to do

    @property
    def notes(self) -> list[str]:
        """What a user should know about the files, as sentences."""
        notes = []
        if self.deep:
            notes.append(
                f"grey of more than 8 bits read as {self.depth}-bit: {self.deep:,} files, up to {self.largest:,}"
            )
        if self.brightest is not None and self.brightest < DIM:
            notes.append(
                f"16-bit colour uses levels up to {self.brightest} of 255 and is near black: if these files hold fewer "
                "bits, save them with 8"
            )
        if self.transparent:
            notes.append(f"transparent parts laid on white: {self.transparent:,} images")
        if self.frames:
            notes.append(f"first of several frames taken: {self.frames:,} files")
        return notes

    @property
    def treatment(self) -> dict[str, int | str]:
        """What was done to the pixels besides resizing, which other files may not need."""
        depth = {"depth": self.depth} if self.deep else {}
        return depth | ({"transparency": "on white"} if self.transparent else {})


def decode(path: str | Path, size: int, channels: int, depth: int = DEEPEST) -> Decoded:
    """Decode one file to uint8 ``[channels, size, size]``.

    The picture is turned upright by its EXIF and stretched to a square; transparent parts become white; grey of more
    than 8 bits (common for X-rays) is scaled, not clipped, from ``depth`` bits.

    Raises:
        Bad: it cannot be decoded.
        OSError: it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except PermissionError as error:
        raise Bad("there is no permission to read it. Give yourself that (chmod)") from error
    except OSError as error:
        error.filename = error.filename or str(path)  # the disk fails, not the picture
        raise
    if not data:
        raise Bad("zero bytes. Repair or remove it")
    try:
        with Image.open(io.BytesIO(data)) as file:
            frames = file.format != "MPO" and getattr(file, "is_animated", False)  # cameras put previews into MPO
            return _decoded(file, size, channels, depth)._replace(digest=content_digest(data), frames=frames)
    except (Bad, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        count, limit = (int(number) for number in re.findall(r"\d+", str(error))[:2])
        raise Bad(f"it has {count:,} pixels, more than the {limit:,} that Pillow takes. Make it smaller") from error
    except UnidentifiedImageError as error:
        raise Bad("it is no image, or of a kind that Pillow does not know. Repair or remove it") from error
    except Exception as error:  # decoders raise anything
        usual = isinstance(error, OSError | ValueError | SyntaxError)
        raise Bad(f"{(usual and str(error)) or repr(error)}. Repair or remove it") from error


def _decoded(file: Image.Image, size: int, channels: int, depth: int) -> Decoded:
    """Decode an open file.

    Raises:
        Bad: its values are not those of a picture.
    """
    # Only JPEG uses this: a grey image is its luma channel, and a far larger image is decoded at a fraction of its
    # size that is at least twice ours; the filter does the rest.
    reduced = (2 * size, 2 * size) if min(file.size) >= DRAFT * size else file.size
    file.draft("L" if channels == 1 else None, reduced)
    deep = any(";16" in str(tile) for tile in getattr(file, "tile", ()))
    file.load()
    image, largest, brightest, transparent = file, None, None, False
    if image.mode == "F":
        raise Bad("its pixels are floating-point numbers. Save it with 8 or 16 bits a pixel")
    if image.mode.startswith("I"):
        image, largest = _eight_bits(image, depth)
    elif deep:
        brightest = int(np.asarray(image)[..., :3].max())
    if largest is None and image.has_transparency_data:
        image, transparent = _on_white(image)
    if (transposition := UPRIGHT.get(_orientation(file))) is not None:
        image = image.transpose(transposition)
    if image.mode == "LAB":  # Pillow cannot convert it to grey
        image = image.convert("RGB")
    image = image.convert("L" if channels == 1 else "RGB").resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)
    return Decoded(pixels, largest, brightest, transparent)


def _eight_bits(image: Image.Image, depth: int) -> tuple[Image.Image, int]:
    """Scale integers of ``depth`` bits to 8 bits, and return the largest of them too.

    Raises:
        Bad: a value does not fit.
    """
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    top = 2**depth - 1
    if low < 0 or high > top:
        raise Bad(f"its values go from {low:,} to {high:,}, not from 0 to {top:,}. Save it with such values")
    grey = (values / (top / 255)).round().astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:  # seen with Pillow: it inverts 8 bits only
        grey = 255 - grey
    return Image.fromarray(grey), high


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """Lay the transparent parts of a picture on white, and return whether there are any."""
    layer = image.convert("RGBA")
    if layer.getextrema()[3][0] == 255:
        return layer, False
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer), True


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, upright, if the EXIF cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # broken offsets in it raise anything
        return 1


def decode_all(
    paths: Sequence[str | Path],
    size: int,
    channels: int,
    take: Callable[[int, Decoded], None],
    refuse: Callable[[int, str], None],
    depth: int | None = None,
) -> Found:
    """Decode files in parallel, grey of more than 8 bits with the same depth for all.

    Args:
        paths: the files.
        size: side of the images, in pixels.
        channels: 1 or 3.
        take: is called with position and content of each file, in any thread; a second call replaces the first.
        refuse: is called with position and reason of a file that cannot be decoded; what it raises ends the decoding.
        depth: bits of grey; by default the fewest of 8, 10, 12, 14 and 16 that hold all values.
    """
    first = depth or DEEPEST
    facts: dict[int, Decoded] = {}
    bad: dict[int, str] = {}

    def work(i: int, bits: int) -> None:
        try:
            decoded = decode(paths[i], size, channels, bits)
        except Bad as error:
            bad[i] = str(error)
            refuse(i, bad[i])
            return
        take(i, decoded)
        if decoded.largest is not None or decoded.brightest is not None or decoded.transparent or decoded.frames:
            facts[i] = decoded._replace(pixels=None, digest=b"")  # all images may not fit into memory

    with warnings.catch_warnings(action="ignore"):  # Pillow warns of each large picture and odd EXIF
        in_threads(lambda i: work(i, first), range(len(paths)), "decoding images")
        largest = {i: fact.largest for i, fact in facts.items() if fact.largest is not None}
        highest = max(largest.values(), default=None)
        if highest is not None and depth is None:
            depth = next(bits for bits in DEPTHS if highest < 2**bits)
            if depth != first:
                in_threads(lambda i: work(i, depth), [*largest], f"decoding {depth}-bit images again")
    return Found(
        depth,
        highest,
        deep=len(largest),
        brightest=max((fact.brightest for fact in facts.values() if fact.brightest is not None), default=None),
        transparent=sum(fact.transparent for fact in facts.values()),
        frames=sum(fact.frames for fact in facts.values()),
        bad=dict(sorted(bad.items())),
    )


def in_threads(work: Callable[[int], None], numbers: Sequence[int], what: str, threads: int | None = None) -> None:
    """Call ``work`` with each number in threads; Pillow, hashes and disks work outside the interpreter lock.

    Args:
        work: is called in any thread.
        numbers: arguments of ``work``.
        what: label of the progress bar.
        threads: by default one per processor.
    """
    threads = threads or processors()
    size = max(1, min(AT_A_TIME, len(numbers) // (4 * threads)))
    chunks = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    pool = ThreadPoolExecutor(threads)
    try:
        done = pool.map(lambda chunk: [work(i) for i in chunk], chunks)
        for _ in progress(chain.from_iterable(done), what, len(numbers)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
