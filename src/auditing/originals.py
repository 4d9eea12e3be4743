"""Read every file of a data set once, as it was saved: its kind, size and levels, its borders and burnt-in marks."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from src.data.bad import Bad
from src.data.decoding import in_threads
from src.data.opening import Opened, opened
from src.data.splits import content_digest

BLACK, WHITE = 12, 243  # levels of 255 up to and from which a pixel is that; JPEG is not exact
EDGE = 0.98  # share of a row's pixels that are black, or white, in a border
SAME = 2  # levels of 255 by which the channels of a grey picture may differ in a JPEG
SIDE = 400  # pixels of the longer side at which marks are looked for
SATURATED, DARKER = 245, 80  # a mark's level, and by how much its surroundings are darker
SMALL, LARGE = 2e-4, 0.02  # share of the picture that the pixels of a mark take
LONGEST, OUTER = 0.15, 0.2  # sides of a mark, and width of the rim that it lies in, in sides of the picture
SURROUNDINGS = 4  # pixels around a mark
MANY = 0.05  # share of saturated pixels from which on a picture is over-exposed, not marked


class Original(NamedTuple):
    """One file as it was saved."""

    kind: str  # such as "JPEG, 8-bit grey"
    format: str
    width: int  # upright
    height: int
    bytes: int
    depth: int  # bits that a level is stored with
    levels: int  # different ones of grey in use
    top: int | None  # the largest of them; None where a training does not read it by its bits (DICOM, decimals)
    colour: bool  # whether it is stored in colour
    grey: bool  # whether it shows none
    turned: bool  # by its EXIF
    border: float  # share of the area in black or white borders
    marks: int  # small bright regions in the rim, as letters are
    digest: bytes  # of the decoded pixels

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width / self.height


def read_all(paths: Sequence[str], skipped: Sequence[bool]) -> list[Original | None]:
    """Read files in threads, one at a time in each; None for those that are skipped or that cannot be read."""
    found: list[Original | None] = [None] * len(paths)

    def work(i: int) -> None:
        if not skipped[i]:
            found[i] = read(paths[i])

    with warnings.catch_warnings(action="ignore"):  # Pillow warns of each large picture and odd EXIF
        in_threads(work, range(len(paths)), "reading originals")
    return found


def read(path: str) -> Original | None:
    """Read one file; None if it cannot be read."""
    data = Path(path).read_bytes()
    try:
        with opened(data) as file:
            return _facts(file, len(data))
    except Bad:  # the training says why
        return None


class _Levels(NamedTuple):
    """The levels of a file, and how it is seen."""

    depth: int
    used: int
    top: int | None
    grey: np.ndarray  # uint8 [H, W]
    content: np.ndarray


def _levels(file: Opened, image: Image.Image) -> _Levels:
    """Return the levels of a file, whose ``image`` has been turned upright."""
    if file.dicom is not None:
        # What is stored is counted; borders and marks are those of the picture that is shown.
        stored = np.ascontiguousarray(file.dicom.stored)
        return _Levels(file.dicom.bits, len(np.unique(stored)), None, np.asarray(image.convert("L")), stored)
    if image.mode[0] in "IF":
        values = np.ascontiguousarray(image)
        top = None if image.mode == "F" else int(values.max())
        low, high = min(float(values.min()), 0.0), float(values.max())
        # Seen with the range in use: borders and marks are relative to it.
        grey = ((values - low) * (255 / ((high - low) or 1))).astype(np.uint8)
        return _Levels(16 if image.mode.startswith("I;16") else 32, len(np.unique(values)), top, grey, values)
    grey = np.asarray(image.convert("L"))
    counts = np.bincount(grey.ravel(), minlength=256)
    depth = 1 if file.image.mode == "1" else 16 if file.deep else 8
    return _Levels(depth, int((counts > 0).sum()), int(counts.nonzero()[0].max()), grey, grey)


def _facts(opened_file: Opened, size: int) -> Original:
    file = opened_file.image
    image, colour = ImageOps.exif_transpose(file), file.mode not in ("1", "L", "LA", "F") and file.mode[0] != "I"
    depth, used, top, grey, content = _levels(opened_file, image)
    plain = not colour
    if colour:
        channels = np.asarray(image.convert("RGB"))
        first = channels[..., :1].astype(np.int16)
        differ = int(np.abs(channels - first).max())
        plain = differ <= SAME
        content = grey if differ == 0 else channels
    tint = "colour" if colour else "grey"
    kind = str(file.format) if opened_file.dicom is None else "DICOM"
    return Original(
        kind=f"{kind}, {depth}-bit {tint}",
        format=kind,
        width=image.width,
        height=image.height,
        bytes=size,
        depth=depth,
        levels=used,
        top=top,
        colour=colour,
        grey=plain,
        turned=image.size != file.size or _turned(file),
        border=border_share(grey),
        marks=len(marks(grey)),
        digest=content_digest(repr(content.shape).encode() + content.tobytes()),
    )


def _turned(file: Image.Image) -> bool:
    return file.getexif().get(0x0112, 1) not in (0, 1)


def border_share(grey: np.ndarray) -> float:
    """Return the share of a picture ``[H, W]`` that rows and columns at its edges take which are black, or white."""
    top, bottom = _edges([((line <= BLACK).mean(1), (line >= WHITE).mean(1)) for line in (grey, grey[::-1])])
    if top >= len(grey):
        return 1.0
    inside = grey[top : len(grey) - bottom].T
    left, right = _edges([((line <= BLACK).mean(1), (line >= WHITE).mean(1)) for line in (inside, inside[::-1])])
    return 1 - inside.shape[1] * max(inside.shape[0] - left - right, 0) / grey.size


def _edges(shares: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[int]:
    """Return how many lines from each end are all black or all white."""
    return [max(int(np.argmin([*(share >= EDGE), False])) for share in pair) for pair in shares]


def marks(grey: np.ndarray) -> list[tuple[slice, slice]]:
    """Return where small, bright and isolated regions lie in the rim of a picture ``[H, W]``, shrunk to 400 pixels.

    Letters and markers that were burnt in or laid on the film look so; so may jewellery, clips and electrodes.
    """
    factor = max(1, round(max(grey.shape) / SIDE))
    if min(grey.shape) < 8 * factor:
        return []
    small = np.asarray(Image.fromarray(grey).reduce(factor)) if factor > 1 else grey
    bright = small >= SATURATED
    if not bright.any() or bright.mean() > MANY:
        return []
    numbered, _ = ndimage.label(bright, np.ones((3, 3)))
    height, width = small.shape
    found = []
    for number, place in enumerate(ndimage.find_objects(numbered), 1):
        rows, columns = place
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        area = int((numbered[place] == number).sum())
        fits = SMALL * small.size <= area <= LARGE * small.size and area >= 4
        if not fits or tall > LONGEST * height or wide > LONGEST * width or min(tall, wide) < 2:
            continue
        middle = np.array([(rows.start + rows.stop) / 2 / height, (columns.start + columns.stop) / 2 / width])
        if np.minimum(middle, 1 - middle).min() > OUTER:
            continue
        around = (
            slice(max(rows.start - SURROUNDINGS, 0), rows.stop + SURROUNDINGS),
            slice(max(columns.start - SURROUNDINGS, 0), columns.stop + SURROUNDINGS),
        )
        ring = small[around][~ndimage.binary_dilation(numbered[around] == number, iterations=2)]
        if len(ring) and np.median(ring) <= SATURATED - DARKER:
            found.append(place)
    return found
