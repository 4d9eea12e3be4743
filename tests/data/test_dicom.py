"""DICOM files are shown as a viewer shows them, keep patients together, and leave nothing of the patient behind."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import JPEGLSLossless

from src.auditing import originals
from src.data import dicom
from src.data.bad import Bad
from src.data.decoding import decode_all
from src.data.layout import list_images
from src.data.picture import decode
from src.runs.record import describe_data
from src.system.errors import UserError
from tests.dicoms import NAME, NUMBER, SCENE, SIDE, dataset, film, save
from tests.helpers import folder_data


def shown(path: Path) -> np.ndarray:
    return decode(path, SIDE, 1).pixels[0].astype(float)


def scene_in(bits: int, signed: bool, photometric: str, window: bool, slope: float | None) -> Dataset:
    """Store the scene so that a viewer shows it: across all values or, with a window, within half of them."""
    first = -(2 ** (bits - 1)) if signed else 0
    last, share = first + 2**bits - 1, SCENE
    # A negative slope makes large stored values dark, so they are stored the other way round; so does MONOCHROME1.
    if (photometric == "MONOCHROME1") != (slope is not None and slope < 0):
        share = 1 - SCENE
    low, high = (first + 2 ** (bits - 2), first + 3 * 2 ** (bits - 2)) if window else (first, last)
    tags = {}
    real = (low, high)
    if slope is not None:
        intercept = -50.5
        tags |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
        real = sorted((low * slope + intercept, high * slope + intercept))
    if window:  # see PS3.3 C.11.2.1.2: half and one are of the definition
        tags |= {"WindowCenter": (real[0] + real[1]) / 2 + 0.5, "WindowWidth": real[1] - real[0] + 1}
    return dataset(low + share * (high - low), bits, signed, photometric, **tags)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("slope", [None, 1.0, 0.25, -2.0])
def test_a_scene_is_shown_alike_however_it_is_stored(photometric, slope, tmp_path):
    for bits, signed, window in itertools.product((8, 12, 16), (False, True), (False, True)):
        path = save(scene_in(bits, signed, photometric, window, slope), tmp_path / "a.dcm")
        levels = 1.51 if bits == 8 and window else 1.01  # half of 256 values holds no more
        assert np.abs(shown(path) - 255 * SCENE).max() <= levels, (bits, signed, window)


def test_a_window_clips_what_lies_beyond_it(tmp_path):
    path = save(dataset(SCENE * 4095, 12, WindowCenter=[1024.5, 9.0], WindowWidth=[2049, 3]), tmp_path / "a.dcm")
    assert np.abs(shown(path) - (255 * 2 * SCENE).clip(0, 255)).max() <= 1.01  # the first window


def test_an_empty_rescale_is_none(tmp_path):
    path = save(dataset(SCENE * 4095, 12, RescaleSlope=None, RescaleIntercept=None), tmp_path / "a.dcm")
    assert np.abs(shown(path) - 255 * SCENE).max() <= 1.01


@pytest.mark.parametrize("shape", [None, "INVERSE", "IDENTITY"])
def test_monochrome1_is_inverted_once(shape, tmp_path):
    """pydicom's apply_presentation_lut does so only where there is a PresentationLUTShape."""
    tags = {} if shape is None else {"PresentationLUTShape": shape}
    path = save(dataset(SCENE * 4095, 12, photometric="MONOCHROME1", **tags), tmp_path / "a.dcm")
    assert np.abs(shown(path) - 255 * (1 - SCENE)).max() <= 1.01


def lut(table: np.ndarray, first: int, bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(table), first, bits])
    item.add_new("LUTData", "US", [int(v) for v in table])
    return Sequence([item])


@pytest.mark.parametrize("bits", [8, 10, 16])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_voi_lut_comes_before_a_window_and_may_have_few_bits(bits, photometric, tmp_path):
    """4,096 entries of 8 bits: pydicom counts them in 8 bits."""
    table = ((np.arange(4096) / 4095) ** 2 * (2**bits - 1)).round()
    made = dataset(SCENE * 4095, 12, photometric=photometric, WindowCenter=10, WindowWidth=5)
    made.VOILUTSequence = lut(table, 0, bits)
    squared = SCENE**2 if photometric == "MONOCHROME2" else 1 - SCENE**2
    assert np.abs(shown(save(made, tmp_path / "a.dcm")) - 255 * squared).max() <= 1.2


def test_a_modality_lut_is_applied_first(tmp_path):
    made = dataset(SCENE * 255, 8)
    made.ModalityLUTSequence = lut((np.arange(256) / 255) ** 2 * 65535, 0, 16)
    made.ModalityLUTSequence[0].ModalityLUTType = "OD"
    assert np.abs(shown(save(made, tmp_path / "a.dcm")) - 255 * SCENE**2).max() <= 2.01


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_modality_lut_may_have_any_number_of_bits(bits, tmp_path):
    """pydicom knows no type of 12 bits."""
    made = dataset(SCENE * 255, 8)
    made.ModalityLUTSequence = lut((np.arange(256) / 255) ** 2 * (2**bits - 1), 0, bits)
    made.ModalityLUTSequence[0].ModalityLUTType = "OD"
    assert np.abs(shown(save(made, tmp_path / "a.dcm")) - 255 * SCENE**2).max() <= 2.01


def test_what_lies_beyond_a_voi_lut_has_its_last_entry(tmp_path):
    """pydicom counts in 16 bits, where rescaled values of 16 bits wrap."""
    made = dataset(SCENE * 65535, 16, RescaleSlope=2, RescaleIntercept=0)
    made.VOILUTSequence = lut(np.arange(4096) * 16, 0, 16)
    expected = (2 * 65535 * SCENE).clip(0, 4095) * 16 / 65535 * 255
    assert np.abs(shown(save(made, tmp_path / "a.dcm")) - expected).max() <= 1.2


def test_a_dark_picture_of_a_palette_stays_dark(tmp_path):
    made = dataset(SCENE * 255, 8, photometric="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(made, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        table = (np.arange(256)).astype("<u2").tobytes()  # of 65,535
        setattr(made, f"{colour}PaletteColorLookupTableData", table)
    assert shown(save(made, tmp_path / "a.dcm")).max() <= 1


def test_colours(tmp_path):
    colours = np.dstack([SCENE, 1 - SCENE, np.zeros_like(SCENE)]) * 255
    path = save(dataset(colours, 8, photometric="RGB"), tmp_path / "a.dcm")
    assert np.abs(decode(path, SIDE, 3).pixels - colours.transpose(2, 0, 1)).max() <= 1
    ybr = Path(get_testdata_file("SC_ybr_full_422_uncompressed.dcm", download=False))
    with ybr.open("rb") as file:
        expected = pixel_array(file, raw=False)
    assert np.array_equal(decode(ybr, len(expected), 3).pixels.transpose(1, 2, 0), expected)


def films(root: Path, tmp_path: Path, *overrides: str):
    return folder_data(root, tmp_path, "data.channels=1", *overrides)


BUNDLED = {
    "693_J2KI.dcm": "L", "MR_small.dcm": "L", "MR_small_RLE.dcm": "L", "MR_small_bigendian.dcm": "L",
    "MR_small_expb.dcm": "L", "MR_small_implicit.dcm": "L", "MR_small_jp2klossless.dcm": "L",
    "J2K_pixelrep_mismatch.dcm": "L", "examples_overlay.dcm": "L", "image_dfl.dcm": "L", "liver_1frame.dcm": "L",
    "CT_small.dcm": "L", "rtdose_1frame.dcm": "L", "ExplVR_BigEnd.dcm": "RGB", "SC_rgb_jpeg_dcmtk.dcm": "RGB",
    "SC_rgb_rle_16bit.dcm": "RGB", "SC_rgb_rle_32bit.dcm": "RGB", "SC_rgb_small_odd_jpeg.dcm": "RGB",
    "examples_palette.dcm": "RGB", "examples_jpeg2k.dcm": "RGB",
    "rtdose.dcm": "has 15 frames", "SC_rgb_rle_2frame.dcm": "has 2 frames", "examples_ybr_color.dcm": "has 30 frames",
    "rtplan.dcm": "holds no picture. Remove", "waveform_ecg.dcm": "holds no picture. Remove",
    "no_meta.dcm": "no DICOM file", "MR_truncated.dcm": r"\(8130 vs 8192 bytes\)", "nested_priv_SQ.dcm": "has no Rows",
}  # fmt: skip
CODECS = ("JPEGLSNearLossless_16", "MR_small_jpeg_ls_lossless", "SC_rgb_jpeg_gdcm", "JPGExtended", "GDCMJ2K_TextGBR")


def bundled(name: str) -> Path:
    if not (found := get_testdata_file(name, download=False)):
        pytest.skip(f"this pydicom does not bundle {name}")
    return Path(found)


@pytest.mark.parametrize("name", BUNDLED)
def test_files_of_pydicom_are_read_or_answered_with_one_line(name):
    expected, path = BUNDLED[name], bundled(name)
    if expected in ("L", "RGB"):
        assert dicom.read(path.read_bytes()).image.mode == expected
        assert decode(path, 16, 1).pixels.shape == (1, 16, 16)
        return
    with pytest.raises(Bad, match=expected) as caught:
        decode(path, 16, 1)
    assert "\n" not in str(caught.value)
    assert ". " in str(caught.value)


@pytest.mark.parametrize("name", CODECS)
def test_a_compression_without_a_decoder_names_the_packages(name):
    if len(dicom.decoders()) > 1:
        pytest.skip("there is one here")
    with pytest.raises(Bad, match=r"its \w+.* needs another package.*\. Install one \(.*pylibjpeg>=2.0") as caught:
        decode(bundled(f"{name}.dcm"), 16, 1)
    assert "\n" not in str(caught.value)


def test_encodings_of_one_picture_are_equal():
    names = ("MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit", "MR_small_jp2klossless")
    first, *others = (decode(bundled(f"{name}.dcm"), SIDE, 1).pixels for name in names)
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"NumberOfFrames": 3, "PixelData": b"\0" * 3 * 64 * 64 * 2}, "it has 3 frames. Save each of them"),
        ({"PixelData": None}, "holds no picture. Remove it"),
        ({"PixelData": None, "FloatPixelData": b"\0" * 64 * 64 * 4}, "floating-point numbers, which have no range"),
        ({"Rows": None, "BitsStored": None}, "its header has no Rows and no BitsStored. Repair"),
        ({"Rows": 60000, "Columns": 60000}, "3,600,000,000 pixels, more than the"),
        ({"RescaleSlope": 0, "RescaleIntercept": 3}, "rescale slope is 0"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "Window Width must be greater than or equal to 1"),
        ({"PixelData": b"\0" * 100}, "less than expected"),
        ({"PhotometricInterpretation": "ARGB"}, "ARGB, neither grey nor colour. Save it"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(change, words, tmp_path):
    made = dataset(SCENE * 4095, 12)
    for name, value in change.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    with pytest.raises(Bad, match=words) as caught:
        decode(save(made, tmp_path / "a.dcm"), 16, 1)
    assert NUMBER not in str(caught.value)


def test_a_codec_that_pydicom_lacks_is_bad_and_skipped_once_it_is_there(tmp_path, monkeypatch):
    """The cache of a folder depends on what can be decoded: after an installation the file is tried again."""
    root = tmp_path / "films"
    for number in range(8):
        save(dataset(SCENE * 4095 - number, 12, signed=True, PatientID=str(number)), root / f"{number}.dcm")
    broken = dataset(SCENE * 4095, 12)
    broken.file_meta.TransferSyntaxUID = JPEGLSLossless
    broken.PixelData = encapsulate([b"\0" * 10])
    save(broken, root / "9.dcm")
    with pytest.raises(UserError, match=r"cannot decode .*9.dcm: its JPEG-LS .*\(gdcm.*skip$"):
        _ = films(root, tmp_path).pool
    assert "not decoded: 9.dcm (its JPEG-LS" in "; ".join(films(root, tmp_path, "data.on_bad_image=skip").pool.notes)
    before = set((tmp_path / "cache").iterdir())
    monkeypatch.setattr("src.data.store.decoders", lambda: ["pydicom", "another"])
    _ = films(root, tmp_path, "data.on_bad_image=skip").pool
    assert len(set((tmp_path / "cache").iterdir()) - before) == 1


def test_without_pydicom_one_line_says_what_to_install(tmp_path, monkeypatch):
    save(dataset(SCENE * 255, 8), tmp_path / "films" / "a.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)  # an import of it fails as if it were not there
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 8, 1).pixels.shape == (1, 8, 8)
    with pytest.raises(
        UserError, match=r"cannot decode .*a.dcm: DICOM needs .* \(pip install pydicom\). Install it, or"
    ):
        _ = films(tmp_path / "films", tmp_path).pool


def test_files_without_an_ending_are_found_by_their_first_bytes(picture_folder):
    root, made = picture_folder({"a.png": (4, 4)}), dataset(SCENE * 255, 8)
    for name in ("IM000001", "1.2.840.113619.2.5", "b.DCM", "c.dicom", "DICOMDIR"):
        save(made, root / name)
    (root / "LICENSE").write_bytes(b"x" * 200)
    (root / "notes.txt").write_bytes((root / "b.DCM").read_bytes())
    files, notes = list_images(root)
    assert files == ["1.2.840.113619.2.5", "IM000001", "a.png", "b.DCM", "c.dicom"]
    assert notes == ["files left out, by ending: no ending: 2, .txt: 1"]


def of_patients(root: Path, patients: dict[int, str | None]) -> Path:
    rng = np.random.default_rng(0)
    for number, patient in patients.items():
        save(film(rng, patient), root / f"{number:02d}.dcm")
    return root


def test_a_patient_stays_in_one_split_and_in_the_cache_as_a_hash(tmp_path):
    """40 films of 10 patients, written with and without padding, and two films of nobody."""
    patients = {i: f"{NUMBER}-{i % 10}{' ' * (i % 3)}" for i in range(40)} | {40: "", 41: None}
    root = of_patients(tmp_path / "films", patients)
    fingerprints = set()
    for _ in range(2):  # decoded, then from the cache
        module = films(root, tmp_path)
        sides = {}
        for side in ("train", "val", "test"):
            for i in getattr(module.splits, side).tolist():
                sides.setdefault(i % 10 if i < 40 else i, set()).add(side)
        assert all(len(side) == 1 for side in sides.values())
        assert {*map(len, module.pool.groups[:40])} == {32}
        assert module.pool.groups[40:] == ["40.dcm", "41.dcm"]
        assert "10 patients by the PatientID of 40 of 42 files" in describe_data(module)
        fingerprints.add(module.fingerprint)
    assert len(fingerprints) == 1
    written = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert module.pool.groups[0].encode() in written
    assert not any(secret in written for secret in (NUMBER.encode(), NAME.encode(), b"19700131"))


def test_a_placeholder_for_all_patients_is_named(tmp_path):
    root = of_patients(tmp_path / "films", dict.fromkeys(range(20), "ANONYMOUS"))
    with pytest.raises(
        UserError, match=r"20 images in 1 groups .*PatientID\): add images, or give another data.group_p"
    ):
        _ = films(root, tmp_path).splits
    some = of_patients(tmp_path / "some", {i: "ANONYMOUS" if i < 8 else f"P{i}" for i in range(30)})
    said = (
        "23 patients by the PatientID of 30 of 30 files, one of whom has 8: if that ID is a placeholder, name patients"
    )
    assert said in describe_data(films(some, tmp_path))
    assert "placeholder" not in describe_data(films(some, tmp_path, 'data.group_pattern="(.*)"'))


def test_a_pattern_decides_in_place_of_the_patient(tmp_path):
    root = of_patients(tmp_path / "films", dict.fromkeys(range(20), "one"))
    module = films(root, tmp_path, r"data.group_pattern='(\d\d)'")
    assert module.pool.groups[:2] == ["00", "01"]
    assert "patients" not in describe_data(module)
    with pytest.raises(UserError, match="cannot carve"):  # all of them are of one patient
        _ = films(root, tmp_path).splits


def test_a_file_without_a_window_is_noted(tmp_path):
    rng = np.random.default_rng(0)
    paths = [save(film(rng), tmp_path / "a.dcm"), save(film(rng, WindowCenter=9, WindowWidth=9), tmp_path / "b.dcm")]
    found = decode_all(paths, 8, 1, lambda *_: None, pytest.fail)
    assert found.notes == ["DICOM without a window, shown with all values that its bits can store: 1 files"]
    assert found.treatment == {}


def test_an_audit_sees_the_picture_that_is_shown(tmp_path):
    """MONOCHROME1 with a border that is white as it is stored, and black as it is shown."""
    values = 4095 * (1 - SCENE)
    values[:16] = 4095
    path = save(dataset(values, 12, photometric="MONOCHROME1"), tmp_path / "a")
    found = originals.read(str(path))
    assert (found.kind, found.format, found.depth) == ("DICOM, 12-bit grey", "DICOM", 12)
    assert (found.width, found.height, found.bytes) == (SIDE, SIDE, path.stat().st_size)
    assert found.levels == len(np.unique(values.round()))
    assert 0.2 < found.border < 0.4
    assert found.grey
    assert not found.colour
    assert originals.read(str(bundled("rtplan.dcm"))) is None
