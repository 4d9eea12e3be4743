"""Detection: planted blobs are found where no simple number tells them, and no score has seen a label."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.covariance import LedoitWolf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.detection import pictures, results
from src.detection.detector import Detector, Judged, joined, normal_classes, p_values
from src.detection.distances import Mahalanobis, Neighbours, Unexplained, out_of_fold
from src.detection.judging import Panel
from src.detection.truth import Truth, truth
from src.metrics.detection import Interval
from src.models.predictor import Predictor
from src.system.errors import UserError
from tests.helpers import PLAIN, assert_one_line_error, built, cli, fit

SIDE, REACH = 32, 4  # pixels: side of a scene, radius of its blob
PATTERN = r"data.group_pattern='(p\d+\w\w)_'"
HERE, ELSEWHERE = (20, 20), (10, 12)  # where the blob of normal scenes is, and that of others
SETTINGS = ("data=image_folder", f"data.image_size={SIDE}", "data.channels=1", "data.val_fraction=0.25")
NETWORK = ("model=mlp", "model.latent_dim=2", "model.encoder.widths=[64]", "optimizer=adam", "optimizer.lr=3e-3")
LIKELIHOOD = "likelihood@model.likelihood=gaussian_learned"


def scene(rng: np.random.Generator, place: tuple[int, int]) -> np.ndarray:
    """Draw a bright blob near a place on smooth noise, uint8: as bright, contrasty and compressible at any place."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - (np.array(place) + rng.integers(-1, 2, 2))[:, None, None]
    noise = gaussian_filter(rng.normal(size=(SIDE, SIDE)), 1, mode="wrap")
    levels = 70 + 12 * noise / noise.std() + 120 * np.exp(-(rows**2 + columns**2) / (2 * (REACH / 2) ** 2))
    return levels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Write normal scenes to train on, and as many normal as other ones to test on; two are of one patient."""
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for folder, count, place in (
        ("train/well", 240, HERE),
        ("train/ill", 12, ELSEWHERE),
        ("test/well", 60, HERE),
        ("test/ill", 60, ELSEWHERE),
    ):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            kind = "" if folder.endswith("well") else ("virus_", "bacteria_")[number % 2]
            name = f"p{number // 2}{folder[1]}{folder[-1]}_{kind}{number}.png"
            Image.fromarray(scene(rng, place)).save(root / folder / name)
    return root


@pytest.fixture(scope="module")
def predictor(scenes, tmp_path_factory) -> Predictor:
    place = (
        f"data.root={scenes}",
        f"data.cache_dir={tmp_path_factory.mktemp('cache')}",
        r"data.group_pattern='(p\d+\w\w)_'",
    )
    datamodule, model = built(*SETTINGS, *NETWORK, LIKELIHOOD, *place, "data.classes=[well]", "data.batch_size=32")
    fit(model, datamodule, epochs=25)
    return Predictor(model.eval(), datamodule)


@pytest.fixture(scope="module")
def panel(predictor) -> Panel:
    return Panel([predictor], None, samples=2)


@pytest.fixture(scope="module")
def outcome(panel):
    return panel.judge_test_images("(bacteria|virus)")


def rows(outcome) -> dict[str, dict]:
    return {row["name"]: row for row in outcome.record["labels"]["scores"]}


def test_a_moved_blob_is_found_though_no_simple_number_tells_it(outcome):
    found = rows(outcome)
    for name in ("brightness", "contrast", "JPEG bytes", "PNG bytes"):
        assert found[name]["auroc"]["low"] < 0.55, (name, found[name])
        assert found[name]["auroc"]["value"] < 0.65, (name, found[name])
    for name in ("verdict", "squared error", "hottest place", "residual distance", "1 − SSIM"):
        assert found[name]["auroc"]["value"] > 0.9, (name, found[name])
    kinds = outcome.record["labels"]["kinds"]
    assert {name: kind["images"] for name, kind in kinds.items()} == {"bacteria": 30, "virus": 30}
    assert "Not for diagnosis" in outcome.words


def test_the_heat_map_peaks_on_the_blob(panel, predictor):
    module = predictor.datamodule
    index = module.splits.test
    ill = index[module.pool.labels[index] == module.pool.classes.index("ill")]
    images = panel.detectors[0].images("test", ill)
    heat = panel.detectors[0].judge(images.x, images.levels).heat
    peaks = np.stack(np.unravel_index(heat.reshape(len(heat), -1).argmax(1), heat.shape[1:]), 1) * SIDE / heat.shape[1]
    assert (np.abs(peaks - ELSEWHERE).max(1) <= REACH).mean() > 0.9


def test_no_score_knows_a_label_of_a_judged_image(panel, predictor, outcome, monkeypatch):
    """Without labels, or with others, the table is the same; only what labels say of it changes."""
    pool, test = predictor.datamodule.pool, predictor.datamodule.splits.test
    labels = pool.labels.clone()
    shuffled = labels.clone()
    shuffled[test] = labels[test][torch.randperm(len(test), generator=torch.Generator().manual_seed(1))]
    without = labels.clone()
    without[test] = -1
    for other in (without, shuffled):
        monkeypatch.setattr(pool, "labels", other)
        again = Panel([predictor], None, samples=2).judge_test_images(None)
        assert again.table.to_csv() == outcome.table.to_csv()
        if other is without:
            assert again.record["labels"] is None
            assert "No AUROC: the test images have no classes" in again.words
            assert [*again.figures] == ["heatmaps"]
        else:
            area = rows(again)["verdict"]["auroc"]
            assert area["low"] < 0.5 < area["high"]
    assert again.record["threshold"] == outcome.record["threshold"]


def test_a_score_does_not_depend_on_what_else_is_judged(panel, predictor, outcome):
    test = predictor.datamodule.splits.test[7:9]
    images = panel.detectors[0].images("test", test)
    alone = panel.detectors[0].judge(images.x, images.levels)
    np.testing.assert_allclose(alone.verdict, outcome.table.verdict[7:9], rtol=1e-4)


def test_normal_validation_images_pass_as_often_as_the_threshold_says(panel):
    verdict = panel.validation.verdict
    assert (verdict > panel.threshold).mean() == pytest.approx(0.05, abs=1 / len(verdict))
    shares = p_values(verdict, verdict)
    assert shares.min() == pytest.approx(2 / (1 + len(verdict)))
    assert p_values(np.array([np.inf, -np.inf]), verdict).tolist() == [1 / (1 + len(verdict)), 1.0]


def test_mahalanobis_is_that_of_ledoit_and_wolf_and_of_one_number_its_size():
    rng = np.random.default_rng(0)
    normal, other = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) * [1, 10, 100, 1] + 5, rng.normal(size=(7, 4))
    scaled = (normal - normal.mean(0)) / normal.std(0)
    expected = LedoitWolf().fit(scaled).mahalanobis((other - normal.mean(0)) / normal.std(0)) ** 0.5
    np.testing.assert_allclose(Mahalanobis(normal)(other), expected)
    z = (other[:, :1] - normal[:, :1].mean()) / normal[:, :1].std()
    np.testing.assert_allclose(Mahalanobis(normal[:, :1])(other[:, :1]), np.abs(z[:, 0]))
    constant = np.concatenate([normal, np.full((50, 1), 3.0)], 1)
    np.testing.assert_allclose(Mahalanobis(constant)(np.concatenate([other, other[:, :1]], 1)), expected)
    assert Mahalanobis(np.ones((5, 2)))(np.zeros((3, 2))).tolist() == [0, 0, 0]


def test_neighbours_and_components_measure_distances():
    line = np.linspace(0, 1, 21)[:, None] * [[3.0, 4.0]]
    assert Neighbours(line[:2])(np.array([[0.0, 0.0]])).item() == pytest.approx(0.125)
    assert Unexplained(line, 1)(np.array([[4.0, -3.0]])).item() == pytest.approx(25 / 2)
    assert Unexplained(line, 5)(np.array([[4.0, -3.0]])).item() == pytest.approx(0)


def test_a_distance_out_of_fold_is_that_of_an_image_which_was_not_seen():
    """Of 40 images with 12 numbers, of the images of the fit it is too small; and a patient stays in one fold."""
    rng = np.random.default_rng(0)
    mix = np.exp(rng.normal(size=(12, 1))) * rng.normal(size=(12, 12))
    normal, fresh = (rng.normal(size=(count, 12)) @ mix for count in (40, 4_000))
    usual = Mahalanobis(normal)(fresh).mean()
    held = out_of_fold(normal, np.arange(40)).mean()
    assert Mahalanobis(normal)(normal).mean() < 0.9 * usual < held < 1.3 * usual
    twice = np.concatenate([normal, normal])
    together = out_of_fold(twice, np.tile(np.arange(40), 2))
    np.testing.assert_allclose(together[:40], together[40:])
    assert together.mean() > 0.9 * usual
    assert np.isfinite(out_of_fold(normal, np.zeros(40, dtype=int))).all()


def test_several_detectors_are_averaged_in_standard_deviations():
    normal = [Judged({"a": np.array([0.0, 2.0])}, np.array([0.0, 2.0]), np.ones((2, 1, 1)))] * 2
    one = Judged({"a": np.array([3.0])}, np.array([3.0]), np.full((1, 1, 1), 4.0))
    two = Judged({"a": np.array([5.0]), "b": np.array([1.0])}, np.array([5.0]), np.full((1, 2, 2), 2.0))
    normal[1] = normal[1]._replace(scores={"a": np.array([0.0, 2.0]), "b": np.array([0.0, 1.0])})
    found = joined([one, two], normal)
    assert {name: values.tolist() for name, values in found.scores.items()} == {"a": [3.0], "b": [1.0]}
    assert (found.verdict.tolist(), found.heat.tolist()) == ([3.0], [[[3.0, 3.0], [3.0, 3.0]]])
    assert joined([one], normal[:1]) is one


def test_runs_that_judge_together_must_know_the_same_images(predictor, scenes, tmp_path, panel, outcome):
    place = (
        f"data.root={scenes}",
        f"data.cache_dir={tmp_path}",
        r"data.group_pattern='(p\d+\w\w)_'",
        "data.classes=[well]",
    )
    datamodule, model = built(*SETTINGS, *NETWORK, LIKELIHOOD, *place, "data.image_size=16", seed=1)
    both = Panel([predictor, Predictor(model.eval(), datamodule)], None, samples=1).judge_test_images(None)
    assert both.table.file.tolist() == outcome.table.file.tolist()
    datamodule, model = built(*SETTINGS, *NETWORK, LIKELIHOOD, *place, "data.split_seed=1")
    with pytest.raises(UserError, match="different val images"):
        Panel([predictor, Predictor(model.eval(), datamodule)], None, samples=1)


def test_normal_classes_are_those_of_the_training_unless_named(predictor):
    assert normal_classes(predictor, None) == [1]
    assert normal_classes(predictor, ["well"]) == normal_classes(predictor, ["1"]) == [1]
    with pytest.raises(UserError, match=r"normal=\[ill\]: the run was trained on no image of that class"):
        normal_classes(predictor, ["ill"])
    with pytest.raises(UserError, match=r"normal=\[healthy\]: there is no class healthy: choose from ill, well"):
        normal_classes(predictor, ["healthy"])
    datamodule, model = built("model=conv_tiny", "data=digits")
    all_digits = Predictor(model.eval(), datamodule)
    with pytest.raises(UserError, match=r"trained on 0, 1, .*say which are normal, such as normal=\[0\]"):
        normal_classes(all_digits, None)
    few = datamodule.splits.val[datamodule.pool.labels[datamodule.splits.val] == 0]
    assert len(few) < 20
    with pytest.raises(UserError, match=f"{len(few)} normal validation images are too few to calibrate on"):
        Detector(all_digits, normal_classes(all_digits, ["0"]), 1)


@pytest.mark.parametrize(
    ("overrides", "has", "lacks"),
    [
        (["model=conv_features"], {"−elbo of features", "error / predicted variance", "code distance"}, {"1 − SSIM"}),
        (["posterior@model.posterior=iaf"], {"−pseudo-elbo", "1 − SSIM"}, {"code distance"}),
        (["posterior@model.posterior=point", "loss=reconstruction"], {"code distance"}, {"rate", "bound of 1 samples"}),
        (["likelihood@model.likelihood=logistic_mixture"], {"−elbo", "rate"}, {"error / predicted variance"}),
    ],
)  # fmt: skip
def test_every_kind_of_model_has_the_scores_that_it_can_have(overrides, has, lacks):
    small = [] if overrides == ["model=conv_features"] else ["model=conv_tiny", "data.image_size=16"]
    datamodule, model = built("data=digits", "data.classes=[0,1,2]", *overrides, *small)
    detector = Detector(Predictor(model.eval(), datamodule), [0, 1, 2], samples=1)
    names = set(detector.validation.scores)
    assert has <= names, names
    assert not lacks & names
    assert all(np.isfinite(values).all() for values in detector.validation.scores.values())
    assert np.isfinite(detector.validation.verdict).all()


def area(value: float, low: float, high: float) -> Interval:
    return Interval(value, low, high)


@pytest.mark.parametrize(
    ("difference", "better", "said"),
    [
        ((0.1, 0.05, 0.15), ("verdict",), "The verdict beats every baseline; the best is 'bytes'"),
        ((0.0, -0.05, 0.05), (), "The verdict is no better than 'bytes', which needs no model"),
        ((-0.1, -0.15, -0.05), ("rate",), "The verdict is worse than 'bytes', which needs no model"),
    ],
)
def test_the_sentence_says_what_the_interval_of_the_difference_says(difference, better, said):
    rows = [
        results.Row("verdict", True, area(0.8, 0.7, 0.9), 0.8, 0.5, 0.9, 0.5),
        results.Row("bytes", False, area(0.8, 0.7, 0.9), 0.8, 0.5, 0.9, 0.5),
    ]
    found = results.Result(rows, {}, results.Comparison("bytes", area(*difference), better), 10, 10)
    lines = results.sentences(found)
    assert lines[0].startswith(said)
    assert ("No score of this model beats 'bytes'." in lines) is (not better)
    assert ("Single scores that beat it here: rate" in "".join(lines)) is (better == ("rate",))


def test_kinds_are_named_by_files_or_by_classes(predictor):
    module, test = predictor.datamodule, predictor.datamodule.splits.test
    by_file = truth(module, test, [1], "(bacteria|virus)")
    assert set(by_file.kind[by_file.abnormal]) == {"bacteria", "virus"}
    assert set(by_file.kind[~by_file.abnormal]) == {""}
    assert set(truth(module, test, [1], "(fungus)").kind) == {"", "ill"}
    assert not truth(module, test, None, None).abnormal.any()


def test_what_is_shown_are_the_highest_the_middle_and_the_missed():
    judged = Judged({}, np.array([5.0, 1.0, 3.0, 2.0, 4.0]), np.ones((5, 2, 2)))
    labels = Truth(np.ones(5, bool), np.array([True, True, False, True, True]), np.array([""] * 5), [])
    chosen = pictures.chosen(judged, labels, threshold=2.5, count=2)
    assert chosen == {"highest": [0, 4], "median": [4, 2], "missed": [1, 3]}
    unknown = labels._replace(abnormal=np.zeros(5, bool))
    assert pictures.chosen(judged, unknown, threshold=2.5, count=2)["lowest"] == [1, 3]


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory) -> Path:
    """Train on normal scenes from the command line."""
    run = tmp_path_factory.mktemp("run") / "run"
    place = (f"data.root={scenes}", f"data.cache_dir={run.parent}/cache", "data.classes=[well]")
    done = cli(*SETTINGS, *NETWORK, LIKELIHOOD, *place, *PLAIN, "trainer.max_epochs=3", f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stdout
    return run


def test_the_command_judges_test_images_and_own_pictures(run, scenes, tmp_path):
    where = f"cache_dir={run.parent}/cache"
    done = cli(f"run={run}", "samples=1", where, module="src.detect")
    assert done.returncode == 0, done.stdout
    assert "60 normal and 60 other images, intervals over images" in done.stdout
    table = pd.read_csv(run / "scores.csv")
    assert len(table) == 120
    assert not {"class", "label"} & set(table.columns)
    record = json.loads((run / "detection.json").read_text())
    assert record["runs"][0]["run"].endswith("run")
    for name in ("roc", "scores", "heatmaps"):
        with Image.open(run / "figures" / f"{name}.png") as image:
            assert len(image.convert("L").getcolors()) > 10, name
    tags = set()
    for file in (run / "tensorboard").glob("events*"):
        tags.update(EventAccumulator(str(file)).Reload().Tags()["images"])
    assert {"detect/roc", "detect/scores", "detect/heatmaps"} <= tags
    own = tmp_path / "own"
    own.mkdir()
    for name in ("well", "ill"):
        shutil.copy(next((scenes / "test" / name).iterdir()), own / f"{name}.png")
    (own / "broken.png").write_bytes(b"no picture")
    done = cli(f"run={run}", f"images={own}", "samples=1", where, module="src.detect")
    assert done.returncode == 0, done.stdout
    assert "broken.png" in done.stdout
    (csv,) = (run / "figures" / "pictures").glob("own-*/scores.csv")
    own_table = pd.read_csv(csv)
    assert [Path(name).name for name in own_table.file] == ["ill.png", "well.png"]
    judged = table.set_index(table.file.map(lambda name: Path(name).name))
    for name, row in zip(("ill", "well"), own_table.itertuples(), strict=True):
        file = next((scenes / "test" / name).iterdir()).name
        assert row.verdict == pytest.approx(judged.verdict[file], rel=1e-4)
        assert row.p_value == judged.p_value[file]
    assert pd.read_csv(run / "scores.csv").equals(table)  # own pictures leave the test images' table alone
    again = cli(f"run=[{run},{run}]", where, module="src.detect")
    assert_one_line_error(again, "several runs have no common folder: say where to write, such as folder=")
    assert_one_line_error(cli(f"run={run}", "normal=[sick]", where, module="src.detect"), "choose from ill, well")
