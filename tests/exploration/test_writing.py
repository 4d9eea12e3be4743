"""Users' names in every figure are drawn as they are written, or with escapes for what cannot be drawn."""

import os
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from matplotlib.image import AxesImage
from torch.utils.tensorboard import SummaryWriter

from src.exploration import denoising, export, grids, latents, own_images, writing
from src.exploration.gallery import PICTURES, write
from src.exploration.writing import Figure, distinct, short
from src.models.predictor import Predictor
from src.system.errors import NotApplicable
from tests.helpers import QUICK, built

LATIN = os.fsdecode(b"caf\xe9")  # a name that is not UTF-8
PLAIN = ("a$b$c", "$_", "_x", "^y", "50%_{z}", r"\alpha$\beta$", "<b>&amp;", "plain")  # drawn as they are
OTHERS = {" ": "' '", LATIN: r"caf\xe9", "tab\there": r"tab\there"}  # drawn so that readers see what they are
NAMES = (*PLAIN, *OTHERS)


def texts(figure: Figure) -> list[str]:
    """Return the texts that a figure passes to its backend; any warning is an error."""
    with matplotlib.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings(), BytesIO() as file:
        warnings.simplefilter("error")
        for image in figure.findobj(AxesImage):
            image.set_data(np.zeros((1, 1, 3)))  # quick: pixels hold no text
        figure.savefig(file, format="svg", bbox_inches="tight")
        root = ElementTree.fromstring(file.getvalue())
    nodes = root.iter("{http://www.w3.org/2000/svg}text")  # a formula has one child per character
    return ["".join(child.text for child in node) if len(node) else node.text for node in nodes]


def with_classes(predictor: Predictor, names: list[str], labels=None) -> Predictor:
    pool = predictor.datamodule.pool
    labels = torch.arange(len(pool.labels)) % len(names) if labels is None else labels
    predictor.datamodule._pool = replace(pool, classes=names, labels=labels)
    return predictor


def fresh(*overrides: str) -> Predictor:
    datamodule, model = built(*QUICK, *overrides)
    epochs = [{"epoch": 0, "train/elbo": float("nan"), "val/elbo": -2.0, "val/rate": 1.0}]
    return Predictor(model.eval(), datamodule, epochs=epochs)


def test_every_picture_draws_names_as_they_are(tmp_path):
    predictor = with_classes(fresh(), [*NAMES])
    named = {"scatter", "class_means"}  # every picture is drawn by the test of unusual data
    for name, picture in PICTURES.items():
        figure = picture(predictor)
        assert isinstance(figure, Figure), name
        if name in named:
            write(figure, tmp_path / f"{name}.png")
            said = texts(figure)
            for expected in (*PLAIN, *OTHERS.values()):
                assert said.count(expected) == (2 if name == "scatter" else 1), (name, expected)  # plot and legend


def test_file_names_are_drawn_as_they_are():
    predictor = fresh()
    files = [f"/somewhere/{name}.png" for name in PLAIN if "/" not in name]
    own = own_images.Pictures(
        files, torch.zeros(8, 1, 16, 16, dtype=torch.uint8), torch.rand(8, 1, 16, 16), "somewhere"
    )
    ((_, figure),) = denoising.draw(predictor, own, 0.1)
    assert {f"{name}.png" for name in PLAIN if len(name) < 9} <= {*texts(figure)}


def test_the_projector_has_a_line_an_image(tmp_path):
    predictor = with_classes(fresh(), [*NAMES, "two\nlines"])
    with SummaryWriter(tmp_path) as writer:
        export.project(predictor, writer, tmp_path)
    (table,) = tmp_path.rglob("metadata.tsv")
    lines = table.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(predictor.codes("test").mean)
    assert {*PLAIN, "-", r"caf\xe9", "tab here", "two lines"} == {*lines}


def test_formulas_are_only_what_matplotlib_writes():
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot([1e-4, 1], [1, 2])
    axes.set_xscale("log")
    axes.set(title="$t$", xlabel="$x$", ylabel="_{y}")
    axes.annotate("$a$", (1e-2, 1.5))
    axes.set_yticks([1, 2], ["$1$", LATIN])
    writing.legend(axes, axes.lines, ["_child0$"])
    said = texts(figure)
    assert {"$t$", "$x$", "_{y}", "$a$", "_child0$", "$1$", r"caf\xe9"} <= {*said}
    assert {"10−4", "10−2"} <= {*said}  # raised


@pytest.mark.parametrize(
    ("case", "dims", "impossible"),
    [
        ("many", 2, set()),
        ("one", 2, set()),
        ("none", 64, {"manifold", "class_means"}),
        ("constant", 64, {"manifold"}),
        ("constant", 1, {"manifold", "histogram", "plane"}),
        ("single", 3, {"manifold", "scatter", "directions", "interpolations", "samples_from_mixture"}),
    ],
)
def test_pictures_of_unusual_data_are_drawn_without_a_warning(case, dims, impossible):
    predictor = fresh(f"model.latent_dim={dims}")
    pool, splits = predictor.datamodule.pool, predictor.datamodule.splits
    labels = torch.zeros_like(pool.labels)
    if case == "many":
        with_classes(predictor, [f"class {i:03} {'z' * 188}" for i in range(200)])
    elif case == "one":
        with_classes(predictor, ["only"], labels)
    elif case == "none":
        with_classes(predictor, [], labels - 1)
    elif case == "constant":
        pool.images[:] = 0
    else:
        predictor.datamodule._splits = splits._replace(train=splits.train[:1], test=splits.test[:1])
    left_out = set()
    for name, picture in PICTURES.items():
        try:
            texts(figure := picture(predictor))
        except NotApplicable:
            left_out.add(name)
        else:
            assert max(figure.get_size_inches()) < 40, name
    assert left_out == impossible


def test_long_names_are_cut_in_the_middle():
    assert short("pneumonia", 9) == "pneumonia"
    assert short("a" * 100 + "b" * 100, 9) == "aaaa…bbbb"
    assert writing.letters(short("x" * 200 + "\n" + "y", 12)) <= 12
    assert [short(name, 20) for name in ("", " ", "\u200b", "_")] == ["''", "' '", r"'\u200b'", "_"]


@pytest.mark.parametrize("longest", [11, 16, 24])
@pytest.mark.parametrize(
    "names",
    [
        ["person1_virus_6.jpeg", "person1_virus_7.jpeg", "person1_bacteria_1.jpeg"],
        [f"NORMAL2-IM-{i:04}-0001-0001.jpeg" for i in range(40)],
        [f"{'a' * 30}{i}{'b' * 30}" for i in range(12)],
        [first * 30 + "x" * 30 + last * 30 for first in "ab" for last in "cd"],
        [f"{'猫' * 20}{i}{'犬' * 20}" for i in range(3)],
    ],
)
def test_different_names_have_different_labels(names, longest):
    labels = distinct([*names, names[0], ""], longest)
    assert len({*labels}) == len(names) + 1
    assert labels[-2:] == [labels[0], ""]
    assert max(map(writing.letters, labels)) <= longest


def test_names_beside_points_lie_on_nothing():
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.rand(30, generator=rng).tolist() for _ in range(2))
    names = [f"$a_{i}$, {i}" for i in range(29)] + ["the last one, in the middle of the others"]
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot(x, y, "o", ms=6)
    axes.annotate("in the way", (0.5, 0.5))
    writing.name_points(figure, {axes: [*zip(x, y, names, strict=True), (float("nan"), 0.5, "nowhere")]}, fontsize=8)
    said = {*texts(figure)}
    figure.draw_without_rendering()
    half = 0.5 * 6 / 72 * figure.dpi
    boxes = [text.get_window_extent() for text in axes.texts]
    for place, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:place])
        spots = axes.transData.transform([*zip(x, y, strict=True)])
        if place:  # the first is the text in the way
            assert not any(box.x0 - half < a < box.x1 + half and box.y0 - half < b < box.y1 + half for a, b in spots)
            assert axes.bbox.padded(1).contains(box.x0, box.y0)
            assert axes.bbox.padded(1).contains(box.x1, box.y1)
    assert names[0] in said  # the first ones choose first
    assert 15 < len(boxes) < 31
    assert "nowhere" not in said


# ---- fonts ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch):
    """Hide all fonts except Matplotlib's own."""
    own = matplotlib.get_data_path()
    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if font.fname.startswith(own)])
    monkeypatch.setattr(writing, "_families", {})
    monkeypatch.setattr(writing, "_without", set())


@pytest.fixture
def cat_font(tmp_path) -> Path:
    """Write a font that has only 猫."""
    pen = TTGlyphPen(None)
    for step, point in enumerate([(100, 0), (100, 800), (900, 800), (900, 0)]):
        (pen.lineTo if step else pen.moveTo)(point)
    pen.closePath()
    glyph, names = pen.glyph(), [".notdef", "cat"]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord("猫"): "cat"})
    builder.setupGlyf(dict.fromkeys(names, glyph))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Only-Cats: 9", "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400, sTypoAscender=900, sTypoDescender=-100)
    builder.setupPost()
    builder.save(tmp_path / "cats.ttf")
    return tmp_path / "cats.ttf"


def test_a_script_without_a_font_is_written_out_and_said_once(bare, caplog):
    predictor = with_classes(fresh(), ["猫", "犬 dog", "c"])
    for _ in range(2):
        assert {r"\u732b", r"\u72ac dog", "c"} <= {*texts(PICTURES["scatter"](predictor))}
    assert r"\u9ce5" in texts(grids.captioned([torch.rand(1, 1, 1, 8, 8)], "鳥", [], [["鳥"]]))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "no installed font has 猫" in record.message
    assert r"\u732b" in record.message
    assert "\n" not in record.message


def test_a_script_with_a_font_is_drawn_in_it(bare, cat_font, caplog):
    fontManager.addfont(cat_font)
    predictor = with_classes(fresh(), ["猫$猫$", "c"])
    figure = PICTURES["scatter"](predictor)
    assert texts(figure).count("猫$猫$") == 2
    (name,) = {tuple(t.get_fontfamily()) for t in figure.axes[0].get_legend().get_texts() if "猫" in t.get_text()}
    assert name[-1] == "Only-Cats: 9"
    assert not caplog.records
    assert writing.drawable("猫犬") == r"猫\u72ac"


def test_the_scatter_names_the_largest_of_very_many_classes():
    labels = torch.cat([torch.arange(50), torch.arange(40), torch.tensor([-1])])
    figure = latents.scatter(torch.rand(91, 2), labels, [f"c{i}" for i in range(50)], "title", ("x", "y"))
    said = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert said == ["10 more classes", *(f"c{i}" for i in range(40))]


def test_numbers_along_an_axis_are_whole():
    """Matplotlib would write 0.015 to 0.045, and 688.5 in a corner."""
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], [688.515, 688.545])
    said = texts(figure)
    assert {"688.520", "688.540"} <= {*said}
    assert axes.yaxis.get_offset_text().get_text() == ""
