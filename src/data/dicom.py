"""Read a DICOM file as a viewer shows it: a picture of 8 bits, and of the patient no more than a hash.

pydicom is imported where the first such file is read.
"""

import io
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from src.data.bad import Bad
from src.data.splits import content_digest
from src.system.errors import one_line

if TYPE_CHECKING:
    from pydicom import Dataset

ENDINGS = (".dcm", ".dicom")
DIRECTORY = "DICOMDIR"  # a list of the files on a disk: it begins as they do and holds no picture
START, MARK = 128, b"DICM"  # where a DICOM file has this mark
DECODERS = ("pydicom", "pylibjpeg", "libjpeg", "openjpeg", "gdcm", "jpeg_ls")  # modules that pydicom decodes with
BYTE = 8  # bits
TABLE_BITS = 16  # up to so many, all values that can be stored are looked up in one table
GREY = ("MONOCHROME1", "MONOCHROME2")
NEEDED = ("Rows", "Columns", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
# Nothing else is parsed: names, dates and addresses cannot get into a message or a file of ours.
TAGS = (
    *("PatientID", "PixelData", "FloatPixelData", "DoubleFloatPixelData", "NumberOfFrames", "Rows", "Columns"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "PixelRepresentation"),
    *("BitsAllocated", "BitsStored", "HighBit", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue", "Alpha")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue", "Alpha")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue", "Alpha")),
)


class Dicom(NamedTuple):
    """The content of a DICOM file."""

    image: Image.Image  # 8-bit grey, or RGB
    stored: np.ndarray  # the values of the file, [H, W] or [H, W, 3]
    bits: int  # that a value is stored with
    patient: str | None  # hash of the patient's ID; None where the file has none
    windowed: bool  # whether the file says which of its grey values to show


def begins_as_dicom(data: bytes) -> bool:
    """Return whether these are the first bytes of a DICOM file."""
    return data[START : START + len(MARK)] == MARK


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM by its ending or, if that is none or a number, by its first bytes.

    The names of files that a scanner writes are often numbers with dots.
    """
    ending = os.path.splitext(path.name)[1].lower()
    if ending in ENDINGS:
        return True
    if path.name == DIRECTORY or (ending[1:] and not ending[1:].isdecimal()):
        return False
    try:
        with path.open("rb") as file:
            return begins_as_dicom(file.read(START + len(MARK)))
    except OSError:
        return False


def decoders() -> list[str]:
    """Return the modules for DICOM that are installed: files that could not be decoded can be with another."""
    return [name for name in DECODERS if find_spec(name) is not None]


def read(data: bytes) -> Dicom:
    """Read the bytes of a DICOM file.

    Grey values pass the modality LUT (rescale), then the VOI LUT or the first window of the file; without one, the
    whole range that its bits can store is shown. MONOCHROME1 is inverted after that, once. Colours are converted to
    RGB.

    Raises:
        Bad: it holds no picture, more than one, or one that cannot be decoded here.
    """
    try:
        from pydicom import dcmread
    except ModuleNotFoundError as error:
        raise Bad("DICOM needs the package pydicom (pip install pydicom). Install it") from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it warns of every oddity in every file
    dataset = dcmread(io.BytesIO(data), specific_tags=list(TAGS))
    for name in [name for name in ("RescaleSlope", "RescaleIntercept") if name in dataset and dataset[name].is_empty]:
        del dataset[name]  # pydicom would multiply by nothing
    _refuse_unsuitable(dataset)
    stored = _stored(dataset)
    grey = dataset.PhotometricInterpretation in GREY
    pixels, windowed = _shown(stored, dataset) if grey else (_colour(stored, dataset), True)
    return Dicom(Image.fromarray(pixels), stored, int(dataset.BitsStored), _patient(dataset), windowed)


def _refuse_unsuitable(dataset: "Dataset") -> None:
    """Raise a Bad unless a file holds one picture of whole numbers, of a size that Pillow would take."""
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise Bad("its pixels are floating-point numbers, which have no range in DICOM. Save it as a float TIFF")
    if "PixelData" not in dataset:
        raise Bad("it is a DICOM file that holds no picture. Remove it")
    if lacking := [name for name in NEEDED if dataset.get(name) is None]:
        raise Bad(f"its header has no {' and no '.join(lacking)}. Repair or remove it")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
        raise Bad(f"it has {frames:,} frames. Save each of them as a file of its own")
    count, limit = int(dataset.Rows) * int(dataset.Columns), 2 * (Image.MAX_IMAGE_PIXELS or np.inf)
    if count > limit:
        raise Bad(f"it has {count:,} pixels, more than the {limit:,} that Pillow takes. Make it smaller")


def _stored(dataset: "Dataset") -> np.ndarray:
    """Return the values of a file; YBR becomes RGB.

    Raises:
        Bad: they are compressed in a way that no installed package decodes.
    """
    from pydicom.pixels import get_decoder, pixel_array

    try:
        return pixel_array(dataset)
    except RuntimeError as error:  # no decoder can be used, or all have failed
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
        missing = "; ".join(decoder.missing_dependencies).replace("requires gdcm", "requires python-gdcm")
        if not missing:
            raise
        kind = dataset.file_meta.TransferSyntaxUID.name
        reason = one_line(error).partition("plugins: ")[2] if "exceptions were raised" in str(error) else ""
        failed = f" (tried: {reason})" if reason else ""
        raise Bad(f"its {kind} needs another package{failed}. Install one ({missing})") from error


def _shown(stored: np.ndarray, dataset: "Dataset") -> tuple[np.ndarray, bool]:
    """Return grey values as they are shown, uint8 ``[H, W]``, and whether the file has a VOI LUT or a window."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    bits, signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
    first = -(2 ** (bits - 1)) if signed else 0
    last = first + 2**bits - 1
    by_table = bits <= TABLE_BITS
    values = np.arange(first, last + 1) if by_table else stored.astype(np.int64)
    low, high = _ends(first, last, dataset)
    for lut in (dataset.get("ModalityLUTSequence") or [])[:1]:  # pydicom knows types of 8 and of 16 bits alone
        lut.LUTDescriptor = [*lut.LUTDescriptor[:2], BYTE if int(lut.LUTDescriptor[2]) == BYTE else 2 * BYTE]
    values = apply_modality_lut(values, dataset)
    lut = next(iter(dataset.get("VOILUTSequence") or []), None)
    if lut is not None and None not in (lut.get("LUTDescriptor"), lut.get("LUTData")):
        windowed, low, high = True, 0, 2 ** int(lut.LUTDescriptor[2]) - 1
        # apply_voi counts its entries in the type of their content: of 4,096 entries of 8 bits it finds 256.
        lut.LUTDescriptor = [*lut.LUTDescriptor[:2], max(10, int(lut.LUTDescriptor[2]))]
        # It subtracts the first value in 16 bits, which wraps what lies beyond the table.
        start, count = int(lut.LUTDescriptor[1]), int(lut.LUTDescriptor[0]) or 2**16
        values = apply_voi_lut(np.round(values).astype(np.int64).clip(start, start + count - 1), dataset)
    elif None not in (dataset.get("WindowCenter"), dataset.get("WindowWidth")):
        windowed, values = True, apply_voi_lut(values, dataset)
    else:
        windowed, low, high = False, min(low, high), max(low, high)
    share = (values.astype(np.float64) - low) / (high - low)
    if dataset.PhotometricInterpretation == "MONOCHROME1":  # pydicom does so only where a PresentationLUTShape says it
        share = 1 - share
    levels = (255 * share.clip(0, 1)).round().astype(np.uint8)
    return levels[stored.astype(np.int32).clip(first, last) - first] if by_table else levels, windowed


def _ends(first: int, last: int, dataset: "Dataset") -> tuple[float, float]:
    """Return what the least and the largest value become by the modality LUT, between which a window spreads its own.

    The first may be the larger one: a window puts what lies below it at that end all the same.
    """
    if dataset.get("ModalityLUTSequence"):
        return 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return first, last
    if not slope:
        raise Bad("its rescale slope is 0, which makes all values equal. Repair or remove it")
    return first * float(slope) + float(intercept), last * float(slope) + float(intercept)


def _colour(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Return colours as uint8 ``[H, W, 3]``."""
    from pydicom.pixels import apply_color_lut

    top = 2 ** int(dataset.BitsStored) - 1
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)[..., :3]
        top = np.iinfo(stored.dtype).max
    if stored.ndim != 3:
        kind = dataset.PhotometricInterpretation
        raise Bad(f"its values are {kind}, neither grey nor colour. Save it as a grey picture")
    return (stored * (255 / top)).round().clip(0, 255).astype(np.uint8)


def _patient(dataset: "Dataset") -> str | None:
    """Return a hash of the patient's ID, without decoding it; None where there is none."""
    if "PatientID" not in dataset:
        return None
    value = dataset.get_item("PatientID").value
    name = (value if isinstance(value, bytes) else str(value or "").encode()).strip(b" \0")
    return content_digest(name).hex() if name else None
