"""The report of a sweep: its numbers are the points' own, and it survives what points may lack."""

import base64
import io
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import t

from src.errors import UserError
from src.figures import looks, sweeps
from src.figures.sheets import contact_sheet
from src.reporting.report import write_report
from src.reporting.results import plain, read_results
from src.reporting.statistics import configurations, interval, pareto, verdict
from src.reporting.words import number, with_interval
from src.sweeps.plan import Plan, point_name
from tests.conftest import ROOT, assert_one_line_error, train_cli


def record(**changes) -> dict:
    """A ``metrics.json`` as trainings write it."""
    whole = {
        "test": {"elbo": -100.0, "distortion": 80.0, "rate": 20.0, "active_latents": 2},
        "best": {"val/elbo": -99.0},
        "likelihood": "bernoulli",
        "pixels": "grey",
        "pseudo_likelihood": True,
        "latent_dim": 2,
        "kl_weight": 1.0,
        "trainable_parameters": 1000,
        "data": {"name": "mnist", "fingerprint": "f" * 32},
        "epochs": 5,
        "steps": 50,
        "precision": "32-true",
        "devices": "1 x cpu",
        "seed": 0,
        "seconds": 60.0,
        "train_images_per_second": 500.0,
        "peak_memory_mib": {"process": 900.0},
        "git_commit": "abc",
        "config": {"seed": 0, "callbacks": {"checkpoint": {"mode": "max"}}},
    }
    return {**whole, **changes}


def write_point(sweep: Path, swept, overrides, number=0, metrics=None, status="finished", error=None) -> Path:
    folder = sweep / point_name(overrides, dict.fromkeys(swept))
    folder.mkdir(parents=True)
    told = {"overrides": overrides, "number": number, "status": status, "error": error}
    (folder / "point.json").write_text(json.dumps(told))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def write_grid(sweep: Path, grid: dict[str, list], figures, fixed=()) -> dict[str, dict]:
    """A sweep of finished points; ``figures(values)`` gives what differs in their records."""
    sweep.mkdir(parents=True, exist_ok=True)
    Plan(
        {key: ",".join(map(str, values)) for key, values in grid.items()}, dict(fixed), "python -m src.train -m ..."
    ).save(sweep)
    written = {}
    for place, values in enumerate(itertools.product(*grid.values())):
        typed = dict(zip(grid, values, strict=True))
        metrics = record(**figures(typed))
        overrides = [f"{key}={value}" for key, value in [*fixed, *typed.items()]]
        written[write_point(sweep, grid, overrides, place, metrics).name] = metrics
    return written


def trade(typed: dict) -> dict:
    """Rate and distortion that depend on the KL weight, the latents and a little on the seed."""
    latents, weight, seed = (typed.get(key, 1) for key in ("model.latent_dim", "model.kl_weight", "seed"))
    rate = 2.0 * latents / weight**0.5
    distortion = 70 + 100 * math.exp(-rate / 8) + [0, 0.3, -0.2][seed]
    test = {"elbo": -rate - distortion, "distortion": distortion, "rate": rate, "active_latents": int(latents)}
    return {"test": test, "best": {"val/elbo": -rate - distortion}, "latent_dim": int(latents), "seed": seed}


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
    done = train_cli(f"sweep={swept[0]}", module="src.report")
    assert done.returncode == 0, done.stdout
    assert done.stdout.strip().endswith(f"27 runs, 27 finished: {swept[0]}/report/index.html")
    return (swept[0] / "report" / "index.html").read_text()


# ---- statistics ----------------------------------------------------------------------------------------------------


def test_an_interval_is_students():
    values = [1.0, 2.0, 4.0]
    mean, half = interval(values)
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(4.302653 * np.std(values, ddof=1) / 3**0.5, rel=1e-6)
    assert interval([1.0])[0] == 1.0
    assert math.isnan(interval([1.0])[1])


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = [abs(mean) <= half for mean, half in (interval(rng.normal(size=3)) for _ in range(2000))]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def points(values: dict[tuple, float]) -> pd.DataFrame:
    rows = [{"point": f"{c}-{s}", "config": c, "seed": s, "value": v} for (c, s), v in values.items()]
    return pd.DataFrame(rows)


def test_the_best_is_chosen_by_the_mean_and_compared_seed_by_seed():
    # Seeds differ by far more than configurations: only pairs show that b is better than a each time.
    table = points(
        {("a", 0): -10.0, ("a", 1): -20.0, ("a", 2): -30.0, ("b", 0): -9.0, ("b", 1): -19.1, ("b", 2): -28.9}
    )
    chosen = verdict(table, ["config"], maximize=True)
    assert chosen.best.config == "b"
    assert chosen.rivals == []
    assert chosen.text == "at 95 % better than 1 of 1 other"
    unpaired = table.assign(seed=[0, 1, 2, 3, 4, 5])
    assert [rival.config for rival in verdict(unpaired, ["config"], maximize=True).rivals] == ["a"]
    assert verdict(table, ["config"], maximize=False).best.config == "a"


def test_it_is_said_when_seeds_are_too_few():
    one = verdict(points({("a", 0): -10.0, ("b", 0): -9.0}), ["config"], maximize=True)
    assert one.text.startswith("1.00 better than the next one, but with one seed")
    two = verdict(points({("a", 0): -10.0, ("a", 1): -11.0, ("b", 0): -9.0, ("b", 1): -9.5}), ["config"], maximize=True)
    assert (
        two.text
        == "at 95 % better than 0 of 1 other, not to be told from 1; 2 seeds are too few to be sure: add seed=0,1,2"
    )
    alone = verdict(points({("a", 0): -1.0}), ["config"], maximize=True)
    assert "only configuration; 1 seed is too few" in alone.text


def test_a_configuration_that_lost_its_seeds_leaves_the_others_comparable():
    good = {("a", s): -9.0 - s / 100 for s in range(3)} | {("b", s): -19.0 - s / 90 for s in range(3)}
    chosen = verdict(points({**good, ("c", 0): -12.0}), ["config"], maximize=True)
    assert chosen.text == "at 95 % better than 1 of 2 others, 1 with one seed cannot be judged"
    assert chosen.rivals == []


def test_the_same_seed_twice_is_one_seed():
    rows = [
        {"point": f"{c}{i}", "config": c, "seed": 0, "value": v}
        for i in range(2)
        for c, v in (("a", -1.0), ("b", -2.0))
    ]
    table = configurations(pd.DataFrame(rows), ["config"], ["value"])
    assert table.seeds.tolist() == [1, 1]
    assert "with one seed nobody knows" in verdict(pd.DataFrame(rows), ["config"], maximize=True).text


def test_configurations_average_over_seeds_alone():
    table = configurations(points({("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 5.0}), ["config"], ["value"])
    assert table.value.tolist() == [2.0, 5.0]
    assert table.seeds.tolist() == [2, 1]
    assert table.value_ci[0] == pytest.approx(t.ppf(0.975, 1) * 2**0.5 / 2**0.5)


def test_the_pareto_front_holds_what_nothing_beats():
    cost, quality = [1, 2, 3, 4, 2, math.nan], [1, 3, 2, 5, 2, 9]
    assert pareto(cost, quality) == [0, 1, 3]
    assert pareto([1, 1], [1, 2]) == [1]


# ---- reading -------------------------------------------------------------------------------------------------------


def test_the_table_holds_the_points_own_numbers(swept):
    folder, written = swept
    results = read_results(folder)
    assert results.swept == ["model.latent_dim", "model.kl_weight"]
    assert len(results.table) == len(written) == 27
    for row in results.table.itertuples():
        own = written[row.point]
        assert (row.test_elbo, row.test_rate, row.value) == (
            own["test"]["elbo"],
            own["test"]["rate"],
            own["best"]["val/elbo"],
        )
        assert (row.wall_seconds, row.process_mib, row.fingerprint) == (60.0, 900.0, "f" * 32)
    assert results.table["model.kl_weight"].tolist()[:4] == [0.5, 0.5, 0.5, 1.0]  # grid order
    assert results.differences() == []


def test_values_are_numbers_where_they_can_be():
    assert [plain(v) for v in ("2", "0.5", "1e-3", "lstm", "[1,2]", None)] == [2, 0.5, 0.001, "lstm", "[1,2]", None]


def test_runs_that_were_started_one_by_one_are_compared_by_what_was_typed(tmp_path):
    for seed, epochs in ((0, 5), (1, 7)):
        run = tmp_path / f"2026-11-2{seed}"
        (run / ".hydra").mkdir(parents=True)
        (run / ".hydra" / "overrides.yaml").write_text(f"- model=lstm\n- trainer.max_epochs={epochs}\n")
        (run / "metrics.json").write_text(json.dumps(record(epochs=epochs)))
    results = read_results(tmp_path)
    assert results.swept == ["trainer.max_epochs"]
    assert results.table["trainer.max_epochs"].tolist() == [5, 7]


def single_run(folder: Path, overrides: list[str], choices: dict[str, str], **metrics) -> None:
    """A run that nobody swept."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    (folder / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": {"choices": choices}}}))
    (folder / "metrics.json").write_text(json.dumps(record(**metrics)))


def test_a_key_that_some_runs_do_not_name_is_looked_up_or_left_open(tmp_path):
    single_run(tmp_path / "a", ["model=lstm"], {"model": "lstm"})
    single_run(tmp_path / "b", ["model=conv_tiny", "optimizer.lr=1e-3"], {"model": "conv_tiny"})
    single_run(tmp_path / "c", ["experiment=mnist_conv_wide"], {"model": "conv_wide"}, test={"elbo": -90.0})
    results = read_results(tmp_path)
    assert results.table.model.tolist() == ["lstm", "conv_tiny", "conv_wide"]
    assert results.table["optimizer.lr"].tolist() == ["–", 0.001, "–"]
    assert results.differences() == []
    assert "3 finished" in write_report(results).read_text()


def test_settings_that_another_command_changed_are_not_taken_for_seeds(tmp_path):
    write_grid(tmp_path, {"model.latent_dim": [2, 8], "model.kl_weight": [1.0, 4.0]}, trade)
    write_grid(tmp_path, {"model.latent_dim": [16, 32]}, trade)
    results = read_results(tmp_path)
    assert results.swept == ["model.latent_dim", "model.kl_weight"]
    assert configurations(results.finished, results.swept, ["test_elbo"]).seeds.tolist() == [1] * 6
    assert "6 finished" in write_report(results).read_text()


def test_points_that_have_not_begun_are_waited_for(tmp_path):
    asked = [[f"model.kl_weight={w}"] for w in (1, 2)]
    write_point(tmp_path, ["model.kl_weight"], asked[0], 0, record())
    Plan({"model.kl_weight": "1,2"}, {}, "", asked).save(tmp_path)
    results = read_results(tmp_path)
    assert results.table.status.tolist() == ["finished", "waiting"]
    assert "1 finished, 1 waiting" in write_report(results).read_text()


def test_the_loss_of_different_kl_weights_chooses_nothing(tmp_path):
    def figures(typed):
        return {"kl_weight": typed["model.kl_weight"], "best": {"val/loss": 10.0 * typed["model.kl_weight"]}}

    write_grid(tmp_path, {"model.kl_weight": [0.5, 1.0]}, figures)
    page = write_report(read_results(tmp_path)).read_text()
    assert "val/loss has another meaning at every KL weight" in page
    assert '<div class="best">' not in page


def test_memory_is_that_of_the_gpu_only_where_all_points_were_on_gpus(tmp_path):
    peak = {"peak_memory_mib": {"process": 900.0, "gpu": 300.0}}
    devices = {0: "1 x cpu", 1: "1 x cuda"}
    for name, seeds, memory in (("mixed", [0, 1], [900.0, 900.0]), ("gpu", [1], [300.0])):
        write_grid(tmp_path / name, {"seed": seeds}, lambda typed: {**peak, "devices": devices[typed["seed"]]})
        results = read_results(tmp_path / name)
        write_report(results)
        assert results.table.memory_mib.tolist() == memory


def test_numbers_of_different_kinds_are_kept_apart_and_it_is_said_why(tmp_path):
    def figures(typed):
        binary = typed["data.binarize"] == "threshold"
        return {"pseudo_likelihood": not binary, "data": {"name": "mnist", "fingerprint": str(int(binary)) * 32}}

    write_grid(tmp_path, {"data.binarize": ["none", "threshold"], "seed": [0, 1]}, figures)
    results = read_results(tmp_path)
    assert [len(family) for family in results.families()] == [2, 2]
    assert len(results.differences()) == 2
    assert "binarization" in results.differences()[0]
    page = write_report(results).read_text()
    assert "Not all of these numbers may be compared" in page
    assert "no best point over all" in page
    assert page.count('<div class="best">') == 2


# ---- the page ------------------------------------------------------------------------------------------------------


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
    assert_one_line_error(train_cli(f"sweep={tmp_path}", module="src.report"), "no run below", str(tmp_path))
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
