"""From the file of a picture to pixels, as a viewer shows it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from src.data.bad import Bad
from src.data.opening import Opened, opened
from src.data.splits import content_digest

Fit = Literal["stretch", "pad", "crop"]
DRAFT = 4  # a JPEG this many times larger is decoded at a half, a quarter or an eighth of its size
DEPTHS = (8, 10, 12, 14, 16)  # bits of grey of detectors and scanners
DEEPEST = DEPTHS[-1]
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


class Treatment(NamedTuple):
    """What is done to every picture of a data set, and so to others that its models are to see."""

    fit: Fit = "stretch"  # how a picture becomes a square
    depth: int | None = None  # bits that grey of more than 8 bits is read with
    span: Sequence[float] | None = None  # least and largest value of such grey, where they are not those of bits
    invert: bool = False  # whether to take the negative

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> "Treatment":
        """Return the one that a pool records, see :attr:`src.data.splits.ImagePool.treatment`.

        Raises:
            ValueError: no pool has recorded this.
        """
        depth, span = recorded.get("depth"), recorded.get("range")
        numbers = span is None or (len(span) == 2 and all(isinstance(end, int | float) for end in span))
        if depth not in (None, *DEPTHS) or not numbers or not np.isfinite(span or 0).all():
            raise ValueError(f"no treatment of pictures: {recorded}")
        return cls(recorded.get("fit", "stretch"), depth, span)

    @property
    def squares(self) -> dict[str, str]:
        """What a pool records of the fit: nothing where pictures are stretched, as they were by earlier versions."""
        return {} if self.fit == "stretch" else {"fit": self.fit}


USUAL = Treatment()


class Decoded(NamedTuple):
    """The content of one file."""

    pixels: np.ndarray  # uint8 [C, S, S]
    lowest: float | None = None  # grey value, if the file has more than 8 bits of grey (DICOM has a window of its own)
    largest: float | None = None
    ranged: bool = False  # whether it has grey values that are no whole numbers of 16 bits
    # Level of its upper 8 bits, if it has 16 bits of colour: Pillow reads no more of them,
    # https://github.com/python-pillow/Pillow/issues/1888
    brightest: int | None = None
    transparent: bool = False  # whether parts of it are transparent
    digest: bytes = b""  # of the file's bytes
    frames: bool = False  # whether there are more frames than the first, which is decoded
    patient: str | None = None  # hash of the patient's ID in a DICOM file
    windowed: bool = True  # False for a DICOM file that does not say which of its grey values to show

    @property
    def plain(self) -> bool:
        """Whether there is nothing to say of it."""
        return self.largest is None and self._replace(pixels=None, digest=b"") == Decoded(None)


def decode(path: str | Path, size: int, channels: int, treatment: Treatment = USUAL) -> Decoded:
    """Decode one file to uint8 ``[channels, size, size]``.

    The picture is turned upright by its EXIF and made a square; transparent parts become white; grey of more than 8
    bits (common for X-rays) is scaled, not clipped: from 16 bits where the treatment gives no range.

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
    with opened(data) as file:
        return _decoded(file, size, channels, treatment)._replace(digest=content_digest(data))


def _decoded(file: Opened, size: int, channels: int, treatment: Treatment) -> Decoded:
    """Decode an open file.

    Raises:
        Bad: its values are not those of a picture.
    """
    image = file.image
    # Only JPEG uses this: a grey image is its luma channel, and a far larger image is decoded at a fraction of its
    # size that is at least twice ours; the filter does the rest.
    reduced = (2 * size, 2 * size) if min(image.size) >= DRAFT * size else image.size
    image.draft("L" if channels == 1 else None, reduced)
    image.load()
    facts, turn = Decoded(None), UPRIGHT.get(_orientation(image))
    if file.dicom is not None:
        facts = Decoded(None, patient=file.dicom.patient, windowed=file.dicom.windowed)
    if image.mode[0] in "IF":
        image, low, high, ranged = _eight_bits(image, treatment)
        facts = facts._replace(lowest=low, largest=high, ranged=ranged)
    elif file.deep and file.dicom is None:  # Pillow shows the upper 8 bits of colours
        facts = facts._replace(brightest=int(np.asarray(image)[..., :3].max()))
    if facts.largest is None and image.has_transparency_data:
        image, transparent = _on_white(image)
        facts = facts._replace(transparent=transparent)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "LAB":  # Pillow cannot convert it to grey
        image = image.convert("RGB")
    image = _square(image.convert("L" if channels == 1 else "RGB"), size, treatment)
    pixels = np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)
    # Asked last, because counting frames leaves the first; cameras put previews into MPO.
    frames = file.image.format != "MPO" and getattr(file.image, "is_animated", False)
    return facts._replace(pixels=pixels, frames=frames)


def _square(image: Image.Image, size: int, treatment: Treatment) -> Image.Image:
    """Make a grey or RGB picture a square of ``size`` pixels: stretched, with black beside it, or its middle."""
    (width, height), box, filled = image.size, None, (size, size)
    if treatment.fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    elif treatment.fit == "pad":
        filled = tuple(max(1, round(size * side / max(width, height))) for side in (width, height))
    image = image.resize(filled, Image.Resampling.BILINEAR, box)
    image = ImageOps.invert(image) if treatment.invert else image
    if filled == (size, size):
        return image
    square = Image.new(image.mode, (size, size))
    square.paste(image, ((size - filled[0]) // 2, (size - filled[1]) // 2))
    return square


def _eight_bits(image: Image.Image, treatment: Treatment) -> tuple[Image.Image, float, float, bool]:
    """Scale grey of more than 8 bits to 8.

    Returns:
        the picture, the least and the largest of its values, and whether they are no whole numbers of 16 bits.

    Raises:
        Bad: a value does not fit, or is no number.
    """
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise Bad("some of its values are no numbers (NaN or infinite). Replace them, or remove it")
    low, high = values.min().item(), values.max().item()
    ranged = image.mode == "F" or low < 0 or high >= 2**DEEPEST
    bottom, top = treatment.span or (0, 2 ** (treatment.depth or DEEPEST) - 1)
    if treatment.depth is not None and (ranged or high > top):
        whole = " in whole numbers" if image.mode == "F" else ""
        held, right = f"from {number(low)} to {number(high)}", f"from 0 to {top:,}{whole}"
        raise Bad(f"its values go {held}, not {right}. Save it with such values")
    share = np.subtract(values, bottom, dtype=np.float64) / (((top - bottom) or 1) / 255)
    grey = share.round().clip(0, 255).astype(np.uint8)
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:  # seen with Pillow: it inverts 8 bits only
        grey = 255 - grey
    return Image.fromarray(grey), low, high, ranged


def number(value: float) -> str:
    """Write a value with all of its digits if it is whole, else with six."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:,.6g}"


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
