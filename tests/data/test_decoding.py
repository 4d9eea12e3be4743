"""Test that pictures are decoded as a viewer shows them, and that bad files are reported."""

import shutil
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from src.data.bad import Bad
from src.data.decoding import decode_all
from src.data.picture import Treatment, decode

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


def test_decoding_equals_pillow(picture_folder):
    path = picture_folder({"a.png": (40, 60, 3)}) / "a.png"
    decoded = decode(path, 16, 3)
    expected = Image.open(path).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(decoded.pixels.transpose(1, 2, 0), np.asarray(expected))
    shutil.copy(path, path.with_name("b.png"))
    assert decode(path.with_name("b.png"), 8, 1).digest == decoded.digest


@pytest.mark.parametrize(
    ("bits", "kind"), [(16, np.uint16), (14, np.uint16), (12, np.uint16), (12, np.int32), (8, np.int32)]
)
def test_deep_grey_is_read_with_the_depth_of_all_files(bits, kind, tmp_path):
    full = (RAMP * (2**bits - 1)).astype(kind)
    for name, values in (("dark.tif", full // 8), ("full.tif", full)):
        Image.fromarray(values).save(tmp_path / name)
    Image.fromarray((RAMP * 255).astype(np.uint8)).save(tmp_path / "shallow.png")
    files = [tmp_path / name for name in ("dark.tif", "full.tif", "shallow.png")]
    taken = {}
    found = decode_all(files, 64, 1, lambda i, decoded: taken.update({i: decoded.pixels[0]}), pytest.fail)
    assert (found.depth, found.deep, found.largest) == (bits, 2, 2**bits - 1)
    for i, brightest in ((0, 255 / 8), (1, 255), (2, 255)):
        assert np.abs(taken[i] - RAMP * brightest).max() <= 1.01, files[i]
    assert found.notes == [f"grey of more than 8 bits read as {bits}-bit: 2 files, up to {2**bits - 1:,}"]


def test_values_that_are_not_grey_levels_are_refused(tmp_path):
    Image.fromarray((RAMP * 4000 - 1024).astype(np.int32)).save(tmp_path / "ct.tif")
    Image.fromarray((RAMP * 4000).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tif")
    ten = Treatment(depth=10)  # a run's pictures had 10 bits
    with pytest.raises(Bad, match="values go from -1,024 to 2,976, not from 0 to 1,023. Save it"):
        decode(tmp_path / "ct.tif", 8, 1, ten)
    with pytest.raises(Bad, match="values go from 0 to 4,000, not from 0 to 1,023"):
        decode(tmp_path / "deep.png", 8, 1, ten)
    with pytest.raises(Bad, match="values go from 0 to 1, not from 0 to 1,023 in whole numbers. Save it"):
        decode(tmp_path / "float.tif", 8, 1, ten)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(broken, tmp_path):
    values = RAMP.astype(np.float32)
    values[3, 4] = broken
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(Bad, match=r"no numbers \(NaN or infinite\). Replace them"):
        decode(tmp_path / "a.tif", 8, 1)


@pytest.mark.parametrize(
    ("low", "high", "kind", "said"),
    [
        (-1024, 3071, np.int32, "-1,024 to 3,071"),
        (0, 100_000, np.int32, "0 to 100,000"),
        (0, 1, np.float32, "0 to 1"),
        (-0.5, 0.25, np.float32, "-0.5 to 0.25"),
    ],
)
def test_grey_of_any_range_is_read_with_the_range_of_all_files(low, high, kind, said, tmp_path):
    full = low + RAMP * (high - low)
    dark = low + (full - low) / 4
    for name, values in (("dark.tif", dark), ("full.tif", full)):
        Image.fromarray(values.astype(kind)).save(tmp_path / name)
    files = [tmp_path / name for name in ("dark.tif", "full.tif")]
    taken = {}
    found = decode_all(files, 64, 1, lambda i, decoded: taken.update({i: decoded.pixels[0]}), pytest.fail)
    assert (found.depth, [*found.span], found.treatment) == (None, [low, high], {"range": [low, high]})
    assert found.notes == [f"grey of more than 8 bits read with one range, {said}: 2 files"]
    for i, brightest in ((0, 255 / 4), (1, 255)):
        assert np.abs(taken[i] - RAMP * brightest).max() <= 1.01
    # Other files, later: the same range, and what lies beyond it is clipped and said.
    Image.fromarray((low + 2 * (full - low)).astype(kind)).save(tmp_path / "new.tif")
    later = decode_all(
        [tmp_path / "new.tif"], 64, 1, lambda i, decoded: taken.update({i: decoded.pixels[0]}), pytest.fail,
        Treatment.of(found.treatment),
    )  # fmt: skip
    assert np.abs(taken[0] - (2 * RAMP * 255).clip(0, 255)).max() <= 1.01
    assert "and are clipped" in later.notes[0]


def test_a_constant_float_picture_is_black(tmp_path):
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "a.tif")
    taken = []
    decode_all([tmp_path / "a.tif"], 8, 1, lambda _, decoded: taken.append(decoded.pixels.max()), pytest.fail)
    assert taken[-1] == 0


def test_sixteen_bit_grey_with_white_at_zero_is_inverted(tmp_path):
    values = (RAMP * 65535).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tif") as image:
        assert image.tag_v2[262] == 0
    pixels = decode(tmp_path / "a.tif", 64, 1).pixels
    assert np.abs(pixels[0] - 255 * (1 - RAMP)).max() <= 1.01


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_parts_are_white(mode, channels, tmp_path):
    """Drawing programs save a black stroke on a transparent black background."""
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, :4] = 255
    black = np.zeros((8, 8), np.uint8)
    if mode == "P":
        picture = Image.fromarray(alpha // 255, "P")  # colour 0 is transparent, colour 1 black
        picture.putpalette([0, 0, 0, 0, 0, 0])
        picture.save(tmp_path / "a.png", transparency=0)
    elif mode == "L":
        Image.fromarray(255 - alpha // 2).save(tmp_path / "a.png", transparency=255)
    else:
        picture = Image.fromarray(np.dstack([black, alpha] if mode == "LA" else [black, black, black, alpha]))
        picture = picture.convert("PA") if mode == "PA" else picture
        picture.save(tmp_path / ("a.tif" if mode == "PA" else "a.png"))
    (file,) = tmp_path.iterdir()
    decoded = decode(file, 8, channels)
    assert decoded.transparent
    assert (decoded.pixels[:, :, 4:] == 255).all()
    assert (decoded.pixels[:, :, :4] == (128 if mode == "L" else 0)).all()


def test_an_alpha_channel_without_transparent_parts_changes_nothing(picture_folder):
    root = picture_folder({"a.png": (30, 20, 3)})
    with Image.open(root / "a.png") as image:
        image.putalpha(255)
        image.save(root / "b.png")
    plain, opaque = (decode(root / name, 16, 3) for name in ("a.png", "b.png"))
    assert np.array_equal(plain.pixels, opaque.pixels)
    assert not opaque.transparent


@pytest.mark.parametrize(("full", "note"), [(65535, []), (4095, ["16-bit colour uses levels up to 15 of 255 and is"])])
def test_sixteen_bit_colour_is_scaled_and_its_fewer_bits_are_named(full, note, tmp_path):
    """Pillow cannot write such a file, so write a TIFF with one strip of 8 x 8 pixels by hand."""
    tags = [(256, 8), (257, 8), (258, 16), (259, 1), (262, 2), (273, 200), (277, 3), (278, 8), (279, 8 * 8 * 6)]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    for tag, value in tags:
        head += struct.pack("<HHII", tag, 3, *((3, 160) if tag == 258 else (1, value)))
    head = head.ljust(160, b"\0") + struct.pack("<3H", 16, 16, 16)
    pixels = np.full((8, 8, 3), (full, full // 2, 0), "<u2").tobytes()
    (tmp_path / "a.tif").write_bytes(head.ljust(200, b"\0") + pixels)
    taken = []
    found = decode_all(
        [tmp_path / "a.tif"], 8, 3, lambda _, decoded: taken.append(decoded.pixels[:, 3, 3]), pytest.fail
    )
    assert taken[0].tolist() == [full >> 8, full >> 9, 0]
    assert [words[:46] for words in found.notes] == [words[:46] for words in note]


def test_exif_orientation_is_obeyed(tmp_path):
    image = Image.fromarray(np.repeat([[0, 255]], 8, axis=0).astype(np.uint8).repeat(4, 1))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    pixels = decode(tmp_path / "turned.png", 8, 1).pixels
    assert pixels[0, 0, 0] == 255
    assert pixels[0, 0, -1] == 0


def _exif(orientation: bytes, *entries: bytes) -> bytes:
    return (
        b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1 + len(entries)) + orientation + b"".join(entries) + b"\0" * 64
    )


def test_exif_that_pillow_cannot_rewrite_or_read_is_no_error(tmp_path):
    half = np.repeat([[0, 255]], 16, axis=0).astype(np.uint8).repeat(8, 1)  # black at the left
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0)
    odd = struct.pack("<HHI4s", 0x0100, 2, 3, b"AAA")  # a width in letters: Pillow reads it and cannot write it
    cases = {
        "rewrite.jpg": _exif(turned, odd),
        "cut.jpg": _exif(turned)[:15],
        "noise.jpg": b"Exif\0\0II*\0\xff\xff\xff\xff",
    }
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for name, exif in cases.items():
            Image.fromarray(half).save(tmp_path / name, exif=exif, quality=95)
        taken = {}
        files = [tmp_path / name for name in cases]
        found = decode_all(files, 16, 1, lambda i, decoded: taken.update({i: decoded.pixels[0]}), pytest.fail)
    assert not found.bad
    assert not warned
    assert taken[0][8, 0] > 250  # turned
    assert taken[1][8, 0] < 5
    assert taken[2][8, 0] < 5


def test_the_first_frame_is_taken_and_noted(tmp_path):
    first, second = (Image.fromarray(np.full((side, 8), level, np.uint8)) for side, level in ((8, 10), (16, 200)))
    first.save(tmp_path / "stack.tif", save_all=True, append_images=[second])
    taken = []
    found = decode_all(
        [tmp_path / "stack.tif"], 8, 1, lambda _, decoded: taken.append(decoded.pixels.mean()), pytest.fail
    )
    assert taken == [10]
    assert found.notes == ["first of several frames taken: 1 files"]


def test_an_error_of_a_decoder_names_the_fault_of_the_file(picture_folder):
    root = picture_folder({"a.jpg": (40, 60, 3)})
    jpeg = (root / "a.jpg").read_bytes()
    (root / "huge.pgm").write_bytes(b"P5\n20000 20000\n255\n")
    (root / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_bytes(b"<html>")
    reasons = {}
    for name in ("huge.pgm", "cut.jpg", "empty.png", "text.png"):
        with pytest.raises(Bad) as caught:
            decode(root / name, 8, 1)
        reasons[name] = str(caught.value)
    assert "400,000,000 pixels, more than the 178,956,970" in reasons["huge.pgm"]
    assert reasons["huge.pgm"].endswith("Make it smaller")
    assert "truncated" in reasons["cut.jpg"]
    assert reasons["empty.png"].startswith("zero bytes")
    assert "no image" in reasons["text.png"]


@pytest.mark.parametrize(
    "error", [KeyError("tag"), RuntimeError("odd"), ZeroDivisionError(), ValueError(), OSError("cut")]
)
def test_any_exception_of_a_decoder_makes_a_bad_file_but_one_of_the_process_is_raised(error, tmp_path, monkeypatch):
    """Register a file format whose decoder fails."""

    def fail(*_):
        raise raised[0]

    raised = [error]
    monkeypatch.setitem(Image.OPEN, "FAILS", (fail, lambda start: start.startswith(b"FAILS")))
    monkeypatch.setattr(Image, "ID", [*Image.ID, "FAILS"])
    (tmp_path / "a.png").write_bytes(b"FAILS" * 9)
    with pytest.raises(Bad, match=r"\w+.*\. Repair or remove it"):
        decode(tmp_path / "a.png", 8, 1)
    for raised[0] in (MemoryError(), KeyboardInterrupt()):
        with pytest.raises(type(raised[0])):
            decode(tmp_path / "a.png", 8, 1)


def test_files_that_would_crash_decoders_are_bad_files(picture_folder, tmp_path):
    """Change a few bytes in a hundred pictures of each format: each is decoded or bad."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 24, 4), dtype=np.uint8))
    files = []
    for ending, mode in (
        ("png", "RGBA"),
        ("tif", "RGBA"),
        ("jpg", "RGB"),
        ("webp", "RGBA"),
        ("bmp", "RGB"),
        ("ppm", "RGB"),
    ):
        exif = {"exif": _exif(struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0))} if ending in ("jpg", "webp") else {}
        picture.convert(mode).save(tmp_path / f"whole.{ending}", **exif)
        whole = np.frombuffer((tmp_path / f"whole.{ending}").read_bytes(), np.uint8)
        for i in range(100):
            broken = whole.copy()
            broken[rng.integers(0, min(len(whole), 200), 6)] = rng.integers(0, 256, 6)
            files.append(tmp_path / f"{i}.{ending}")
            files[-1].write_bytes(broken.tobytes())
    taken = set()
    found = decode_all(files, 8, 3, lambda i, _: taken.add(i), lambda *_: None)
    assert taken | set(found.bad) == set(range(600))
    assert all(". " in reason for reason in found.bad.values())
