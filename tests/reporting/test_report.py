"""The page of a sweep's report: complete, equal to the points' records, and written whatever they lack."""

import base64
import html
import io
import math
import re
import shlex
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from src.reporting import plots, style
from src.reporting.contact_sheet import contact_sheet
from src.reporting.report import write_report
from src.reporting.results import read_results
from src.reporting.statistics import configurations, interval
from src.reporting.words import number, with_interval
from src.sweeps.plan import Plan
from src.system.errors import UserError
from tests.helpers import ROOT, assert_one_line_error, cli
from tests.points import record, trade, write_grid, write_point


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    """Write 27 points with a picture each; return their folder and their records."""
    folder = tmp_path_factory.mktemp("swept")
    grid = {"model.latent_dim": [2, 4, 8], "model.kl_weight": [0.5, 1.0, 4.0], "seed": [0, 1, 2]}
    written = write_grid(folder, grid, trade, fixed=[("experiment", "mnist_lstm")])
    for place, name in enumerate(written):
        (folder / name / "figures").mkdir()
        Image.new("L", (64, 32), 9 * place).save(folder / name / "figures" / "strip.png")
    return folder, written


@pytest.fixture(scope="module")
def page(swept) -> str:
    """Write the report of these points by the command and return its page."""
    done = cli(f"folder={swept[0]}", module="src.report")
    assert done.returncode == 0, done.stdout
    assert done.stdout.strip().endswith(f"27 runs, 27 finished: {swept[0]}/report/index.html")
    return (swept[0] / "report" / "index.html").read_text()


FIGURES = ("rate_distortion", "test_elbo", "latents", "cost")


def cells(page: str, heading: str) -> list[list[str]]:
    """Return the texts of the first table below a heading."""
    table = re.split(f"<h2[^>]*>{heading}</h2>", page)[1].split("<tbody>")[1].split("</tbody>", 1)[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in table.split("</tr>")[:-1]]
    return [[re.sub("<[^>]+>", "", cell).strip() for cell in row] for row in rows]


def test_the_page_is_whole_and_says_what_the_points_say(swept, page):
    folder, written = swept
    linked = re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']*)""", page)
    assert set(linked) == {f"{name}.png" for name in (*FIGURES, "contact_sheet")}  # opens offline, and by itself
    for figure in FIGURES:
        assert (folder / "report" / f"{figure}.png").stat().st_size > 5_000
        svg = (folder / "report" / f"{figure}.svg").read_bytes()
        assert base64.b64encode(svg).decode() in page
    rows = cells(page, "Points")
    assert [row[5] for row in rows] == [number(-m["test"]["elbo"]) for m in written.values()]
    means = cells(page, "Configurations")
    elbos = [m["test"]["elbo"] for m in written.values()]
    nelbos = [-elbo for elbo in elbos]
    assert [row[4] for row in means] == [with_interval(*interval(nelbos[i : i + 3])) for i in range(0, 27, 3)]
    best = max(range(0, 27, 3), key=lambda i: np.mean(elbos[i : i + 3]))
    latent_dim, kl_weight = (list(written)[best].split("__")[i].split("-")[1] for i in (1, 0))
    assert f"<strong>latent_dim = {latent_dim}, kl_weight = {float(kl_weight):g}</strong>" in page
    assert "python -m src.train experiment=mnist_lstm model.latent_dim=2 model.kl_weight=0.5 seed=0" in page
    table = pd.read_csv(folder / "results.csv")
    assert table.test_elbo.tolist() == pytest.approx(elbos)


def test_the_elbo_has_one_sign_as_papers_print_it(swept, page):
    """Box and table showed -96.73 where README and figures showed 96.73."""
    folder, written = swept
    best = page.split('<div class="best">')[1].split("</div>")[0]
    assert "val −pseudo-elbo 98.57 ± 0.63" in best
    assert re.search(r"on the test split −pseudo-elbo [\d.]+ ± [\d.]+, pseudo-distortion [\d.]+ ± [\d.]+, rate", best)
    assert "−pseudo-elbo: as papers print it; lower is better" in page
    assert not re.search(r">\s*-\d", page)  # nothing that a reader sees
    sheet = page.split('<div class="sheet"')[1]
    assert all(f"−pseudo-elbo {number(-metrics['test']['elbo'])}" in sheet for metrics in written.values())
    for name in ("test_elbo", "cost"):
        texts = drawn(page, name)
        assert "test −pseudo-elbo (nats per image)" in texts
        assert not [text for text in texts if re.fullmatch(r"[-−]\d+", text)]  # a tick
    assert (pd.read_csv(folder / "results.csv")[["value", "test_elbo"]] < 0).all(axis=None)


@pytest.mark.parametrize(
    ("metric", "printed"), [("val/elbo", "val −elbo 99.00"), ("val/rate", "val/rate 20.00"), ("elbo", "−elbo 99.00")]
)
def test_what_else_points_are_compared_by_is_printed_as_it_is(tmp_path, metric, printed):
    value = {"val/rate": 20.0}.get(metric, -99.0)
    figures = {"best": {metric: value}, "config": {"compare_by": metric}, "pseudo_likelihood": False}
    write_grid(tmp_path, {"model.kl_weight": [1.0]}, lambda typed: figures)
    page = write_report(read_results(tmp_path)).read_text()
    assert printed in page.split('<div class="best">')[1].split("</div>")[0]


def test_minutes_are_those_of_the_whole_point(swept, page):
    """They include the start-up: the training alone is a fifth of what 200 points take."""
    assert {tuple(row[-3:-1]) for row in cells(page, "Points")} == {("1.50", "1.00")}
    assert "time of a point, start-up included (minutes)" in drawn(page, "cost")
    assert "By time" in page


def test_failed_and_unfinished_points_are_shown_with_their_reason(tmp_path):
    write_grid(tmp_path, {"model.kl_weight": [1.0]}, trade)
    keys = ["model.kl_weight"]
    write_point(tmp_path, keys, ["model.kl_weight=2"], 1, None, "failed", "the <loss> is not finite")
    write_point(tmp_path, keys, ["model.kl_weight=3"], 2, None, "running")
    write_point(tmp_path, keys, ["model.kl_weight=4"], 3, None, "interrupted")
    damaged = write_point(tmp_path, keys, ["model.kl_weight=5"], 4, None, "finished")
    (damaged / "metrics.json").write_text("{")
    results = read_results(tmp_path)
    assert results.table.status.tolist() == ["finished", "failed", "interrupted", "interrupted", "failed"]
    page = write_report(results).read_text()
    rows = cells(page, "Points that are not finished")
    assert rows[0][1:3] == ["failed", "the &lt;loss&gt; is not finite"]
    assert "it did not end" in rows[1][2]
    assert "metrics.json is damaged" in rows[3][2]


@pytest.mark.parametrize(
    "metrics",
    [
        {"test": {}},
        {"best": {}},
        {"best": None, "test": None, "data": None},
        {"config": None, "peak_memory_mib": None, "seconds": None, "train_images_per_second": None},
    ],
)
def test_points_with_missing_keys_are_reported_as_far_as_they_go(tmp_path, metrics):
    write_grid(tmp_path, {"model.kl_weight": [0.5, 1.0], "seed": [0, 1]}, lambda typed: {**trade(typed), **metrics})
    write_point(tmp_path, ["model.kl_weight", "seed"], ["model.kl_weight=4", "seed=0"], 9, {"steps": 1})
    page = write_report(read_results(tmp_path)).read_text()
    assert "5 finished" in page


def test_a_picture_that_is_no_strip_costs_its_point_alone(tmp_path):
    """A picture of 200 million pixels, or one that is cut off, must not end the report of all points."""
    write_grid(tmp_path, {"model.kl_weight": [0.5, 1.0], "seed": [0, 1]}, lambda typed: {**trade(typed), "test": {}})
    strips = [path.parent / "figures" / "strip.png" for path in sorted(tmp_path.glob("*/point.json"))]
    for strip in strips:
        strip.parent.mkdir(exist_ok=True)
    Image.new("1", (20_000, 10_000)).save(strips[0])
    Image.new("1", (1, 60_000)).save(strips[1])
    strips[2].write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    Image.new("L", (64, 16)).save(strips[3])
    page = write_report(read_results(tmp_path)).read_text()
    assert page.count("data:image/png;base64") == 1
    with Image.open(tmp_path / "report" / "contact_sheet.png") as sheet:
        assert sheet.height < 200


def test_a_report_folder_that_leads_out_is_refused(tmp_path):
    write_grid(tmp_path / "sweep", {"seed": [0]}, trade)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sweep" / "report").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="report leads out of"):
        write_report(read_results(tmp_path / "sweep"))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_one_point_makes_a_report(tmp_path):
    write_grid(tmp_path, {}, trade)
    page = write_report(read_results(tmp_path)).read_text()
    assert "the only configuration" in page
    assert len(cells(page, "Points")) == 1


def test_a_search_over_numbers_makes_a_report(tmp_path):
    rates = [1.1e-4 * 1.7**i for i in range(12)]
    grid = {"optimizer.lr": rates, "model": ["lstm"]}
    write_grid(tmp_path, grid, lambda typed: {"test": {**record()["test"], "elbo": math.log(typed["optimizer.lr"])}})
    assert "test_elbo" in write_report(read_results(tmp_path)).read_text()


def test_what_else_differs_is_said(tmp_path):
    commits = ["0" * 40, "1" * 40, "1" * 40 + "+changes"]
    write_grid(tmp_path, {"seed": [0, 1, 2]}, lambda typed: {"git_commit": commits[typed["seed"]]})
    page = write_report(read_results(tmp_path)).read_text()
    assert "3 versions of the code: 00000000, 11111111, 11111111+changes" in page


def test_the_contact_sheet_shows_every_point_in_grid_order(swept, page):
    folder, written = swept
    shades = [9 * place for place in range(len(written))]
    sheet = page.split('<div class="sheet"')[1].split("<h2>")[0]
    shown = [Image.open(io.BytesIO(base64.b64decode(p))) for p in re.findall(r"data:image/png;base64,([^\"]+)", sheet)]
    assert [picture.getpixel((0, 0)) for picture in shown] == shades
    assert "--columns: 3" in sheet  # three seeds side by side
    with Image.open(folder / "report" / "contact_sheet.png") as picture:
        colours = {colour[0] for _, colour in picture.getcolors(2**16)}
    assert set(shades) <= colours


def test_a_page_that_is_printed_unseen_has_its_pictures_and_whole_tables(page):
    """Browsers load lazy pictures when they are scrolled to: printed pages would lack them."""
    assert "loading=" not in page
    printed = page.split("@media print {")[1].split("</style>")[0]
    assert "tr, figure { break-inside: avoid; }" in printed
    assert re.search(r"th, td \{[^}]*white-space: normal", printed)


def test_headings_are_buttons_that_name_the_order_which_begins_with_the_best(page):
    """The page's script reads data-first and aria-sort; no browser runs it here."""
    heads = re.findall(r'<th data-first="(\w+)"[^>]*><button type="button">(.*?)</button></th>', page)
    assert len(heads) == page.split("<script>")[0].count("<button") == 8 + 14
    first = {name: way for way, name in heads}
    more = {"seeds", "active latents", "epochs", "images/s"}  # is better
    assert {name for name, way in first.items() if way == "descending"} == more
    assert "aria-sort" in page.split("<script>")[1]


def test_cells_carry_the_numbers_that_the_script_sorts_by(swept, page):
    """A cell shows a rounded number with its interval or unit; its data-value is the number itself."""
    table = re.split("<h2[^>]*>Points</h2>", page)[1].split("<tbody>")[1].split("</tbody>")[0]
    rows = [re.findall(r'<td[^>]*data-value="([^"]*)"', row) for row in table.split("</tr>")[:-1]]
    written = list(swept[1].values())
    assert [int(row[0]) for row in rows] == list(range(27))
    for column, name in ((5, "elbo"), (6, "distortion"), (7, "rate"), (8, "active_latents")):
        shown = [float(row[column]) for row in rows]
        order = sorted(range(27), key=lambda i, name=name: abs(written[i]["test"][name]))
        assert sorted(range(27), key=shown.__getitem__) == order
    means = page.split("<h2>Configurations</h2>")[1].split("<tbody>")[1].split("</tbody>")[0]
    assert len(re.findall(r'data-value="\d+\.\d+">\d+\.\d\d ± ', means)) == 9 * 4


@pytest.mark.parametrize(
    ("grid", "asked"),
    [
        ({"model.kl_weight": [0.5, 4]}, "model.kl_weight=0.5,4 seed=1,2"),  # seed 0 has other folders' names: not again
        ({"model.kl_weight": [0.5, 4], "seed": [0, 1]}, "model.kl_weight=0.5,4 seed=0,1,2,3"),
    ],
)
def test_the_advice_to_add_seeds_is_a_command_that_stays_in_the_folder(tmp_path, grid, asked):
    folder = tmp_path / "a b"
    write_grid(folder, grid, lambda typed: {**trade(typed), "test": {}, "seed": typed.get("seed", 0)})
    typed = "python -m src.train -m model.kl_weight=0.5,4 seed=0,1 hydra.sweep.dir=elsewhere"
    points = [[f"model.kl_weight={w}"] for w in (0.5, 4)]
    Plan({key: "" for key in grid}, {}, typed, points).save(folder)
    (advice,) = re.findall(
        "Add seeds to this folder.*?<pre>(.*?)</pre>", write_report(read_results(folder)).read_text()
    )
    command = shlex.split(html.unescape(advice))
    assert command == ["python", "-m", "src.train", "-m", *asked.split(), f"hydra.sweep.dir='{folder}'"]


def test_a_search_is_advised_to_repeat_its_best_point_elsewhere(tmp_path):
    write_grid(tmp_path, {"model.kl_weight": [0.5, 4]}, lambda typed: {**trade(typed), "test": {}})
    page = write_report(read_results(tmp_path)).read_text()
    assert "<pre>python -m src.train -m model.kl_weight=" in page
    (advice,) = re.findall("Repeat the best point.*?<pre>(.*?)</pre>", page)
    assert advice.endswith("seed=0,1,2")
    assert "hydra.sweep.dir" not in advice


def test_a_step_of_a_front_that_is_smaller_than_noise_is_none(tmp_path):
    """Three configurations, each dearer and better in the mean than the one before; the second one by noise."""
    noise = {"b": [3.0, -2.0, 0.5], "c": [10.0, 10.2, 9.9]}

    def figures(typed):
        elbo = -100.0 + noise.get(typed["model"], [0.0] * 3)[typed["seed"]]
        parameters = {"a": 10, "b": 20, "c": 30}[typed["model"]]
        test = {"elbo": elbo, "distortion": 80.0 - elbo, "rate": 20.0, "active_latents": 2}
        return {"test": test, "best": {"val/elbo": elbo}, "seed": typed["seed"], "trainable_parameters": parameters}

    page = reported(tmp_path / "seeds", {"model": ["a", "b", "c"], "seed": [0, 1, 2]}, figures)
    assert "By size: model = a; model = c." in page
    assert "p &lt; 0.05" in page
    page = reported(tmp_path / "one", {"model": ["a", "b", "c"], "seed": [0]}, figures)
    assert "By size: model = a; model = b; model = c." in page
    assert "one seed gives no error estimate" in page


@pytest.mark.parametrize(
    ("metric", "name", "first"),
    [
        ("val/active_latents", "val/active_latents", "descending"),
        ("val/rate", "val/rate", "ascending"),
        ("val/elbo", "val −pseudo-elbo", "ascending"),
    ],
)
def test_the_first_order_is_that_of_the_metric(tmp_path, metric, name, first):
    figures = {"best": {metric: 3.0}, "test": {}, "config": {"compare_by": metric}}
    write_grid(tmp_path, {"model.kl_weight": [0.5, 1.0]}, lambda typed: figures)
    page = write_report(read_results(tmp_path)).read_text()
    assert f'<th data-first="{first}"><button type="button">{name}</button>' in page


def test_a_narrow_or_dark_screen_is_served(page):
    style = page.split("<style>")[1].split("</style>")[0]
    assert "@media screen and (prefers-color-scheme: dark)" in style
    assert not re.search(r"(?<!-)color: #", style.split("body {")[1])  # all from the variables above
    for table in re.finditer("<table", page):
        assert page[: table.start()].endswith('<div class="scroll">')  # is as wide as it likes in its own box


def test_a_contact_sheet_takes_pictures_of_any_size(tmp_path):
    for size in ((10, 400), (700, 3)):
        Image.new("RGB", size).save(tmp_path / f"{size[0]}.png")
    sheet = contact_sheet([("x" * 500, tmp_path / "10.png"), ("b", tmp_path / "700.png")], 2)
    assert sheet.width < 700


def test_iso_elbo_lines_are_where_the_elbo_is_the_same(swept):
    results = read_results(swept[0])
    means = configurations(results.finished, results.swept, ["test_rate", "test_distortion", "test_elbo"])
    axes = plots.rate_distortion(means, results.finished, results.swept, results.names).axes[0]
    grey = [line for line in axes.lines if isinstance(line.get_color(), str) and line.get_color() == "0.85"]
    levels = {round(float(x + y), 6) for line in grey for x, y in zip(*line.get_data(), strict=True)}
    assert len(levels) == len(grey) >= 3
    written = {float(text.get_text()) for text in axes.texts if text.get_color() == "0.55"}
    assert written <= levels
    curves = [line for line in axes.lines if line.get_marker() in style.MARKERS]
    assert len(curves) == 3  # one a latent size
    assert all(len(line.get_xdata()) == 3 for line in curves)  # a point a KL weight


# ---- names and values of every kind ----------------------------------------------------------------------------------

NASTY = ["a$b$c", "_x", "^y", "50%_{z}", r"\alpha$", """<b>&"'</b>""", "L" * 200, " ", "猫", "caf\udce9"]


class Page(HTMLParser):
    """Collects texts, attributes and tags of a page as a browser parses them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.texts = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.texts += [value for _, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def sorts_of(grid: dict[str, list]):
    """Return a function that gives points different figures, some with collapsed latents."""
    places = iter(range(1000))

    def figures(typed: dict) -> dict:
        place = next(places)
        test = {"elbo": -100.0 - place, "distortion": 70.0 + place, "rate": 30.0, "active_latents": place % 3}
        return {"test": test, "best": {"val/elbo": -100.0 - place}}

    return figures


def reported(folder: Path, grid: dict[str, list], figures=None, **options) -> str:
    """Write such a sweep and return its page; any warning is an error."""
    write_grid(folder, grid, figures or sorts_of(grid), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return write_report(read_results(folder)).read_text(encoding="utf-8")


def drawn(page: str, name: str) -> list[str]:
    """Return the texts of a figure: an SVG holds them as comments beside the outlines of the letters."""
    svg = re.search(rf'<a href="{name}\.png"[^>]*><img src="data:image/svg\+xml;base64,([^"]+)" alt="{name}">', page)[1]
    return [html.unescape(text) for text in re.findall("<!-- (.*?) -->", base64.b64decode(svg).decode())]


def test_names_are_shown_as_they_are(tmp_path):
    grid = {"data.root": NASTY, "model._target_": ["_a$", "_b$"]}
    page = reported(tmp_path / "a$b$ <i>", grid, fixed=[("tags", "[<i>$x$</i>]")])
    write_point(tmp_path / "a$b$ <i>", grid, ["data.root=z"], 99, None, "failed", """no <script>"'&""")
    page = write_report(read_results(tmp_path / "a$b$ <i>")).read_text(encoding="utf-8")
    seen = Page(page)
    assert not {"b", "i"} & seen.tags
    for name in [*NASTY[:-1], r"caf\xe9", "[<i>$x$</i>]", """no <script>"'&""", str(tmp_path / "a$b$ <i>")]:
        assert name in seen.texts, name
    texts = drawn(page, "test_elbo")
    assert {*NASTY[:5], r"caf\xe9", "' '", "_target_ = _a$", "_target_ = _b$"} <= {*texts}
    table = pd.read_csv(tmp_path / "a$b$ <i>" / "results.csv")
    assert table["data.root"].tolist()[:-1:2] == [*NASTY[:-1], r"caf\xe9"]
    sheet = contact_sheet([(name, ROOT / "outputs" / "readme" / "samples.png") for name in [*NASTY, "a\nb"]], 2)
    assert sheet.width < 700


@pytest.mark.parametrize(
    ("grid", "ticks"),
    [
        ({"model.kl_weight": [-1, 1, 100]}, ["-1", "1", "100"]),
        ({"model.kl_weight": [0, 0.5, 4]}, ["0", "0.5", "4"]),
        ({"model.kl_weight": ["nan", 1, ".inf", "-inf"]}, ["nan", "1", ".inf", "-inf"]),
        ({"seed": [1], "model.latent_dim": [1, 10**30]}, ["1", str(10**30)[:12]]),
        ({"model.encoder.widths": ["[16,32]", "null", "[]"]}, ["[16,32]", "null", "[]"]),
        ({"data.dequantize": ["true", "false"], "model.latent_dim": [2, 4]}, ["true", "false"]),
    ],
)
def test_values_of_every_kind_stand_on_an_axis(tmp_path, grid, ticks):
    page = reported(tmp_path, grid)
    texts = drawn(page, "latents")
    assert all(any(text.startswith(tick) for text in texts) for tick in ticks), texts
    key = list(grid)[-1] if "seed" in grid else next(iter(grid))
    results = read_results(tmp_path)
    means = configurations(results.finished, results.swept, ["test_rate", "active_latents", "latent_dim"])
    left = plots.latents(means, results.finished, [key], results.names).axes[0]
    (crosses,) = [line for line in left.lines if line.get_marker() == "x"]  # as the title says
    assert len(crosses.get_xdata()) == (means.active_latents == 0).sum() > 0
    places = left.transData.transform([(x, 0) for x in left.get_xticks()])[:, 0]
    assert np.diff(places).min() > 0.04 * left.bbox.width


def test_choices_that_have_no_order_are_not_joined_and_the_costs_name_them(tmp_path):
    """Lines between models would suggest values in between, and dots without names cannot be read."""
    page = reported(tmp_path, {"model": ["lstm", "conv_tiny"], "model.latent_dim": [2, 4]})
    assert {"lstm, 2", "lstm, 4", "conv_tiny, 2", "conv_tiny, 4", "Names: model, latent_dim."} <= {*drawn(page, "cost")}
    results = read_results(tmp_path)
    points = results.finished.assign(minus=-results.finished.test_elbo)
    means = configurations(points, results.swept, ["minus", "test_rate", "active_latents", "latent_dim"])
    figure = plots.by_key(means, points, results.swept, results.names, "minus", "", "")
    joined = [{line.get_linestyle() for line in axes.lines if line.get_marker() in "os^"} for axes in figure.axes]
    assert joined[0] == {"None"}
    assert "None" not in joined[1]
    signs = [{line.get_linestyle() for line in axes.get_legend().get_lines()} for axes in figure.axes]
    assert (signs[0], "None" in signs[1]) == ({"None"}, False)
    costs = means.assign(whole_seconds=[60.0, 90.0, 60.0, 120.0])
    for axes in plots.cost(costs, "minus", "", {"whole_seconds": [0, 1]}, results.swept, results.names).axes:
        assert {line.get_linestyle() for line in axes.lines} <= {"None"}


def test_a_label_of_all_latents_is_under_no_marker(swept):
    results = read_results(swept[0])
    means = configurations(results.finished, results.swept, ["test_rate", "active_latents", "latent_dim"])
    figure = plots.latents(means, results.finished, results.swept, results.names)
    figure.draw_without_rendering()
    left = figure.axes[0]
    labels = {text.get_text(): text.get_window_extent() for text in left.texts}
    assert labels.keys() == {"all of 2", "all of 4", "all of 8"}
    assert all(left.bbox.x1 < box.x0 and box.x1 < figure.axes[1].bbox.x0 for box in labels.values())
    crowd = means.assign(latent_dim=[1, 1, 1, 2, 2, 2, 64, 64, 64])
    texts = plots.latents(crowd, results.finished, results.swept, results.names).axes[0].texts
    assert [text.get_text() for text in texts] == ["all of 64", "all of 2"]


@pytest.mark.parametrize(("bad", "which"), [(math.nan, {0}), (math.inf, {0, 1, 2, 3})])
def test_figures_that_are_no_numbers_are_left_out(tmp_path, bad, which):
    def figures(typed):
        place = [0.5, 1, 2, 4].index(typed["model.kl_weight"])
        elbo = bad if place in which else -100.0 - place
        return {"test": {"elbo": elbo, "distortion": -elbo, "rate": 1.0, "active_latents": 0},
                "best": {"val/elbo": elbo}, "seconds": 0.0, "train_images_per_second": bad}  # fmt: skip

    rows = cells(reported(tmp_path, {"model.kl_weight": [0.5, 1, 2, 4]}, figures), "Points")
    assert [row[3] for row in rows] == ["–" if place in which else f"{100 + place:.2f}" for place in range(4)]


# ---- the command line ----------------------------------------------------------------------------------------------


def test_an_empty_folder_is_answered_in_one_line(tmp_path):
    assert_one_line_error(cli(f"folder={tmp_path}", module="src.report"), "no run below", str(tmp_path))
    with pytest.raises(UserError, match="is no folder"):
        read_results(tmp_path / "x")


def test_a_report_does_without_torch():
    code = "import sys, src.report, src.reporting.report, src.reporting.results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_sweep_of_which_every_point_failed_has_a_report(tmp_path):
    for place, weight in enumerate((1, 2)):
        write_point(tmp_path, ["model.kl_weight"], [f"model.kl_weight={weight}"], place, None, "failed", "no such data")
    page = write_report(read_results(tmp_path)).read_text()
    assert [row[2] for row in cells(page, "Points that are not finished")] == ["no such data", "no such data"]
