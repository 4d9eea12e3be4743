"""DICOM files of a scene and of a patient, as a detector or a scanner writes them."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

SIDE = 64
SCENE = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE) ** 1.5  # how bright each pixel is to be shown
NAME, NUMBER = "Confidential^Given", "PAT-4711-SECRET"


def dataset(values: np.ndarray, bits: int, signed: bool = False, photometric: str = "MONOCHROME2", **tags) -> Dataset:
    """Return a file of stored values ``[H, W]`` (or ``[H, W, 3]``, or ``[frames, H, W]``)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    made = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    colours = 3 if photometric == "RGB" else 1
    made.Rows, made.Columns = values.shape[-2:] if colours == 1 else values.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation = colours, photometric
    if colours == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = 8 if bits <= 8 else 16
    made.BitsStored, made.HighBit, made.PixelRepresentation = bits, bits - 1, int(signed)
    made.PatientName, made.PatientID, made.PatientBirthDate = NAME, NUMBER, "19700131"
    kind = f"{'i' if signed else 'u'}{made.BitsAllocated // 8}"
    made.PixelData = np.ascontiguousarray(values.round()).astype(kind).tobytes()
    made["PixelData"].VR = "OW" if bits > 8 else "OB"
    for name, value in tags.items():
        setattr(made, name, value)
    return made


def save(made: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def film(rng: np.random.Generator, patient: str | None = NUMBER, bits: int = 12, **tags) -> Dataset:
    """Return a file with the scene, somewhat brighter or darker and with noise, of a patient."""
    values = (SCENE * rng.uniform(0.6, 0.9) + 0.1 * rng.random((SIDE, SIDE))) * (2**bits - 1)
    return dataset(values, bits, PatientID=patient, **tags)
