"""The page of a sweep's report: whole, true to the points, and there whatever they may lack."""

import base64
import io
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from src.errors import UserError
from src.figures import looks, sweeps
from src.figures.sheets import contact_sheet
from src.reporting.report import write_report
from src.reporting.results import read_results
from src.reporting.statistics import configurations, interval
from src.reporting.words import number, with_interval
from tests.helpers import ROOT, assert_one_line_error, cli
from tests.points import record, trade, write_grid, write_point


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    """27 points with a picture each, and what they wrote."""
    folder = tmp_path_factory.mktemp("swept")
    grid = {"model.latent_dim": [2, 4, 8], "model.kl_weight": [0.5, 1.0, 4.0], "seed": [0, 1, 2]}
    written = write_grid(folder, grid, trade, fixed=[("experiment", "mnist_lstm")])
    for place, name in enumerate(written):
        (folder / name / "figures").mkdir()
        Image.new("L", (64, 32), 9 * place).save(folder / name / "figures" / "strip.png")
    return folder, written


@pytest.fixture(scope="module")
def page(swept) -> str:
    """The report of these points, as a user gets it."""
    done = cli(f"sweep={swept[0]}", module="src.report")
    assert done.returncode == 0, done.stdout
    assert done.stdout.strip().endswith(f"27 runs, 27 finished: {swept[0]}/report/index.html")
    return (swept[0] / "report" / "index.html").read_text()


def cells(page: str, heading: str) -> list[list[str]]:
    """Texts of the first table below a heading."""
    table = re.split(f"<h2[^>]*>{heading}</h2>", page)[1].split("<tbody>")[1].split("</tbody>", 1)[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in table.split("</tr>")[:-1]]
    return [[re.sub("<[^>]+>", "", cell).strip() for cell in row] for row in rows]


def test_the_page_is_whole_and_says_what_the_points_say(swept, page):
    folder, written = swept
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)  # opens offline
    for figure in ("rate_distortion", "test_elbo", "latents", "cost"):
        assert (folder / "report" / f"{figure}.png").stat().st_size > 5_000
        svg = (folder / "report" / f"{figure}.svg").read_bytes()
        assert base64.b64encode(svg).decode() in page
    rows = cells(page, "Points")
    assert [row[5] for row in rows] == [number(m["test"]["elbo"]) for m in written.values()]
    means = cells(page, "Configurations")
    elbos = [m["test"]["elbo"] for m in written.values()]
    assert [row[4] for row in means] == [with_interval(*interval(elbos[i : i + 3])) for i in range(0, 27, 3)]
    best = max(range(0, 27, 3), key=lambda i: np.mean(elbos[i : i + 3]))
    latent_dim, kl_weight = (list(written)[best].split("__")[i].split("-")[1] for i in (1, 0))
    assert f"<strong>latent_dim = {latent_dim}, kl_weight = {float(kl_weight):g}</strong>" in page
    assert "python -m src.train experiment=mnist_lstm model.latent_dim=2 model.kl_weight=0.5 seed=0" in page
    table = pd.read_csv(folder / "results.csv")
    assert table.test_elbo.tolist() == pytest.approx(elbos)


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
    write_point(tmp_path, ["model.kl_weight", "seed"], ["model.kl_weight=4", "seed=0"], 9, {"epochs": 1})
    page = write_report(read_results(tmp_path)).read_text()
    assert "5 finished" in page


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
    assert "repeat(3, 1fr)" in sheet  # three seeds side by side
    with Image.open(folder / "report" / "contact_sheet.png") as picture:
        colours = {colour[0] for _, colour in picture.getcolors(2**16)}
    assert set(shades) <= colours


def test_a_contact_sheet_takes_pictures_of_any_size(tmp_path):
    for size in ((10, 400), (700, 3)):
        Image.new("RGB", size).save(tmp_path / f"{size[0]}.png")
    sheet = contact_sheet([("x" * 500, tmp_path / "10.png"), ("b", tmp_path / "700.png")], 2)
    assert sheet.width < 700


def test_iso_elbo_lines_are_where_the_elbo_is_the_same(swept):
    results = read_results(swept[0])
    means = configurations(results.finished, results.swept, ["test_rate", "test_distortion", "test_elbo"])
    axes = sweeps.rate_distortion(means, results.finished, results.swept, results.names).axes[0]
    grey = [line for line in axes.lines if isinstance(line.get_color(), str) and line.get_color() == "0.85"]
    levels = {round(float(x + y), 6) for line in grey for x, y in zip(*line.get_data(), strict=True)}
    assert len(levels) == len(grey) >= 3
    written = {float(text.get_text()) for text in axes.texts if text.get_color() == "0.55"}
    assert written <= levels
    curves = [line for line in axes.lines if line.get_marker() in looks.MARKERS]
    assert len(curves) == 3  # one a latent size
    assert all(len(line.get_xdata()) == 3 for line in curves)  # a point a KL weight


# ---- the command line ----------------------------------------------------------------------------------------------


def test_an_empty_folder_is_answered_in_one_line(tmp_path):
    assert_one_line_error(cli(f"sweep={tmp_path}", module="src.report"), "no run below", str(tmp_path))
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
