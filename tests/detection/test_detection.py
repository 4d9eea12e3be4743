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
from sklearn.metrics import average_precision_score, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.detection import pictures, results
from src.detection.detector import Detector, Judged, joined, normal_classes, p_values, threshold
from src.detection.distances import CrossFitted, Mahalanobis, Neighbours, Unexplained
from src.detection.judging import Panel, folder_of
from src.detection.truth import Truth, truth
from src.metrics.detection import Interval
from src.models.predictor import Predictor
from src.runs.load import load_run
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
    heat = panel.detectors[0].judge(module.pool.images[ill]).heat
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
    assert again.record["thresholds"] == outcome.record["thresholds"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=conv_tiny"],
        ["model=conv_tiny", "data.dequantize=true", "likelihood@model.likelihood=gaussian_learned"],
        ["model=conv_tiny", "data.binarize=dynamic"],
        ["model=conv_tiny", "posterior@model.posterior=iaf"],
        ["model=conv_tiny", "posterior@model.posterior=mixture"],
        ["model=conv_features"],
    ],
)
def test_what_is_said_of_an_image_does_not_depend_on_the_others(overrides):
    """Nor on its place: images are judged in another order and alone, with the same noise for the same content."""
    small = [] if overrides == ["model=conv_features"] else ["data.image_size=16"]
    datamodule, model = built("data=digits", "data.classes=[0,1,2,3]", *overrides, *small)
    detector = Detector(Predictor(model.eval(), datamodule), [0, 1, 2, 3], samples=2)
    levels = datamodule.pool.images[datamodule.splits.test[:6]]
    together, turned, alone = (detector.judge(some) for some in (levels, levels.flip(0), levels[4:5]))
    for name, values in (together.scores | {"verdict": together.verdict}).items():
        others, single = ({**one.scores, "verdict": one.verdict}[name] for one in (turned, alone))
        np.testing.assert_allclose(others[::-1], values, rtol=1e-3, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(single, values[4:5], rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("count", [5, 19, 20, 27, 50, 99, 102])
def test_an_image_is_flagged_exactly_where_its_p_value_is_at_most_one_in_twenty(count):
    rng = np.random.default_rng(count)
    normal, values = rng.normal(size=count), rng.normal(size=2_000)
    assert ((values > threshold(normal)) == (p_values(values, normal) <= 0.05)).all()
    rates = [(rng.normal(size=1_000) > threshold(rng.normal(size=count))).mean() for _ in range(300)]
    assert np.mean(rates) < 0.055


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


def test_normal_images_and_others_are_held_against_fits_that_have_not_seen_them():
    """Of 40 images with 12 numbers, those of the fit itself are too near; and a patient stays in one fold."""
    rng = np.random.default_rng(0)
    mix = np.exp(rng.normal(size=(12, 1))) * rng.normal(size=(12, 12))
    normal, fresh = (rng.normal(size=(count, 12)) @ mix for count in (40, 4_000))
    fitted = CrossFitted(normal, range(40))
    assert Mahalanobis(normal)(normal).mean() < 0.9 * fitted(fresh).mean()
    assert fitted.held.mean() == pytest.approx(fitted(fresh).mean(), rel=0.15)
    twice = CrossFitted(np.concatenate([normal, normal]), [*range(40), *range(40)])
    np.testing.assert_allclose(twice.held[:40], twice.held[40:])
    assert twice.held.mean() > 0.85 * twice(fresh).mean()
    sizes = CrossFitted(normal, [*["large"] * 20, *range(20)])  # a large patient has a fold of its own
    np.testing.assert_allclose(sizes.held[:20], Mahalanobis(normal[20:])(normal[:20]))
    for groups in (["a patient"] * 40, [*["large"] * 21, *range(19)], [*range(4)] * 10):
        with pytest.raises(UserError, match="5 are needed, and none with more than half of the images"):
            CrossFitted(normal, groups)


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
    with pytest.raises(UserError, match="different normal validation images"):
        Panel([predictor, Predictor(model.eval(), datamodule)], None, samples=1)
    datamodule, model = built(*SETTINGS, *NETWORK, LIKELIHOOD, *place, "data.fit=pad")
    with pytest.raises(UserError, match="data.fit=stretch and pad"):
        Panel([predictor, Predictor(model.eval(), datamodule)], None, samples=1)


def test_normal_classes_are_those_of_the_training_unless_named(predictor):
    assert normal_classes(predictor, None) == [1]
    assert normal_classes(predictor, ["well"]) == normal_classes(predictor, ["1"]) == [1]
    with pytest.raises(UserError, match=r"normal=\[well,ill\]: the run was trained on no image of ill"):
        normal_classes(predictor, ["well", "ill"])
    with pytest.raises(UserError, match=r"normal=\[healthy\]: there is no class healthy: choose from ill, well"):
        normal_classes(predictor, ["healthy"])
    datamodule, model = built("model=conv_tiny", "data=digits")
    all_digits = Predictor(model.eval(), datamodule)
    with pytest.raises(UserError, match=r"trained on 0, 1, .*say which of them are normal, normal="):
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
        ((0.0, -0.05, 0.05), (), "The verdict is not surely better than 'bytes', which needs no model"),
        ((-0.1, -0.15, -0.05), ("rate",), "The verdict is worse than 'bytes', which needs no model"),
    ],
)
def test_the_sentence_says_what_the_interval_of_the_difference_says(difference, better, said):
    rows = [
        results.Row("verdict", True, *[area(0.8, 0.7, 0.9)] * 4, 0.5),
        results.Row("bytes", False, *[area(0.8, 0.7, 0.9)] * 4, 0.5),
    ]
    found = results.Result(rows, {}, results.Comparison("bytes", area(*difference), better), (10, 10), (10, 10))
    lines = results.sentences(found)
    assert lines[0].startswith(said)
    assert ("No score of this model surely beats all baselines." in lines) is (not better)
    ahead = results.Result(rows, {}, results.Comparison("bytes", area(0.1, 0.05, 0.15), ()), (10, 10), (10, 10))
    assert "No score" not in "".join(results.sentences(ahead))  # the verdict alone is judged at a level of its own
    assert ("Single scores that beat them all here: rate" in "".join(lines)) is (better == ("rate",))


def judged_by(scores: dict[str, np.ndarray], bare: dict[str, np.ndarray], abnormal: np.ndarray, units=None):
    """Hold made scores, the first of which is the verdict, against made labels."""
    rng, count = np.random.default_rng(9), len(abnormal)
    verdict, *rest = scores
    sides = []
    for draw in (lambda values: values, lambda values: rng.normal(size=50)):
        one = Judged({name: draw(scores[name]) for name in rest}, draw(scores[verdict]), np.ones((1, 1, 1)))
        sides.append((one, {name: draw(values) for name, values in bare.items()}))
    labels = Truth(np.ones(count, bool), abnormal, np.where(abnormal, "ill", ""), [""] * count)
    return results.result(*sides, labels, range(count) if units is None else units)


def test_the_areas_are_those_of_scikit_learn_and_a_verdict_has_to_beat_every_baseline():
    """A baseline that is a little worse than another one, and errs elsewhere, may be the one that is not beaten."""
    rng, abnormal = np.random.default_rng(0), np.arange(300) % 2 == 1
    shared, own = rng.normal(size=300) + 1.2 * abnormal, rng.normal(size=300)
    verdict = shared + 0.6 * own
    bare = {"like it": shared + 0.9 * own, "another": rng.normal(size=300) + 1.1 * abnormal}
    found = judged_by({"verdict": verdict}, bare, abnormal)
    for row in found.rows:
        values = {"verdict": verdict, **bare}[row.name]
        assert row.auroc.value == pytest.approx(roc_auc_score(abnormal, values))
        assert row.auprc.value == pytest.approx(average_precision_score(abnormal, values))
        assert row.auprc.low < row.auprc.value < row.auprc.high
        assert row.sensitivity.low <= row.sensitivity.value <= row.sensitivity.high
    alone = [judged_by({"verdict": verdict}, {name: values}, abnormal) for name, values in bare.items()]
    assert found.comparison.difference.low <= min(one.comparison.difference.low for one in alone)
    assert judged_by({"verdict": shared + 3 * abnormal}, bare, abnormal).comparison.difference.low > 0


def test_of_many_scores_that_know_nothing_more_hardly_any_is_called_better():
    named = 0
    for seed in range(10):
        rng, abnormal = np.random.default_rng(seed), np.arange(100) % 2 == 1
        scores = {f"{number}": rng.normal(size=100) + abnormal for number in range(10)}
        found = judged_by(scores, {"one": rng.normal(size=100) + abnormal}, abnormal)
        named += len(found.comparison.better) > 0
    assert named <= 2


def test_one_patient_of_a_side_makes_nothing_sure():
    rng, abnormal = np.random.default_rng(0), np.arange(60) >= 30
    units = [*range(30), *["one"] * 30]
    found = judged_by({"verdict": rng.normal(size=60) + 3 * abnormal}, {"bare": rng.normal(size=60)}, abnormal, units)
    assert (found.rows[0].auroc.low, found.rows[0].auroc.high) == (0, 1)
    assert (found.comparison.difference.low, found.comparison.better) == (-1, ())
    assert "30 normal and 30 other images of 30 and 1 patients; intervals over patients, too few" in results.words(
        found, "patients"
    )
    assert judged_by({"verdict": rng.normal(size=60)}, {"bare": rng.normal(size=60)}, np.arange(60) == 0) is None


def test_kinds_are_named_by_files_or_by_classes(predictor):
    module, test = predictor.datamodule, predictor.datamodule.splits.test
    by_file = truth(module, test, [1], "(bacteria|virus)")
    assert set(by_file.kind[by_file.abnormal]) == {"bacteria", "virus"}
    assert set(by_file.kind[~by_file.abnormal]) == {""}
    assert set(truth(module, test, [1], "(fungus)").kind) == {"", "ill"}
    assert not truth(module, test, None, None).abnormal.any()


def test_what_is_shown_are_the_highest_the_missed_and_the_middle_and_nothing_twice():
    judged = Judged({}, np.array([5.0, 1.0, 3.0, 2.0, 4.0]), np.ones((5, 2, 2)))
    labels = Truth(np.ones(5, bool), np.array([True, True, False, True, True]), np.array([""] * 5), [])
    chosen = pictures.chosen(judged, labels, 2.5, count=2)
    assert chosen == {"highest": [0, 4], "middle": [2], "missed": [1, 3]}
    unknown = labels._replace(abnormal=np.zeros(5, bool))
    assert pictures.chosen(judged, unknown, 2.5, count=2) == {"highest": [0, 4], "middle": [2], "lowest": [1, 3]}
    assert pictures.chosen(Judged({}, np.ones(1), np.ones((1, 2, 2))), unknown, 2.5) == {"highest": [0]}


def test_the_usual_heat_stays_grey_and_more_turns_red_and_then_yellow():
    heat = np.array([0.2, 1.0, 2.0, 3.0, 21.0]).reshape(5, 1, 1)
    colours = pictures.overlaid(torch.full((5, 1, 2, 2), 0.5), heat, hottest=3.0)[..., 0, 0]
    assert colours[:2].tolist() == [[0.5, 0.5, 0.5]] * 2
    assert (colours[2, 0] > 0.5, colours[2, 1] < 0.5) == (True, True)
    assert colours[4, 1] > colours[3, 1] + 0.4


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
    assert "60 normal and 60 other images; intervals over images" in done.stdout
    table = pd.read_csv(run / "scores.csv")
    assert len(table) == 120
    assert not {"class", "label"} & set(table.columns)
    record = json.loads((run / "detection.json").read_text())
    assert record["runs"][0]["run"].endswith("run")
    assert (record["normal"], record["validation_images"], record["samples"]) == (["well"], 59, 1)
    assert set(record["thresholds"]) >= {"verdict", "JPEG bytes", "rate"}
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
        for number, file in enumerate(sorted((scenes / "test" / name).iterdir())[:10]):
            shutil.copy(file, own / f"{name}_{number}.png")
    (own / "broken.png").write_bytes(b"no picture")
    done = cli(f"run={run}", f"images={own}", "samples=1", where, module="src.detect")
    assert done.returncode == 0, done.stdout
    assert "broken.png" in done.stdout
    (csv,) = (run / "figures" / "pictures").glob("own-*/scores.csv")
    assert {path.name for path in csv.parent.iterdir()} == {
        "scores.csv", "detection.json", "heatmaps_1.png", "heatmaps_2.png",
    }  # fmt: skip
    own_table = pd.read_csv(csv)
    assert not own_table.inverted.any()
    judged = table.set_index(table.file.map(lambda name: Path(name).name))
    for row in own_table.itertuples():
        name, _, number = Path(row.file).stem.partition("_")
        file = sorted((scenes / "test" / name).iterdir())[int(number)].name
        assert row.verdict == pytest.approx(judged.verdict[file], rel=1e-4)
        assert row.p_value == judged.p_value[file]
    assert ("unlike normal images" in done.stdout) is bool(own_table.p_value.min() <= 0.05)
    assert pd.read_csv(run / "scores.csv").equals(table)  # own pictures leave the test images' table alone
    done = cli(f"run={run}", f"images={own}/ill_0.png", "samples=1", where, module="src.detect")
    assert done.returncode == 0, done.stdout


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_judged(run, scenes, tmp_path):
    loaded = load_run(run, cache_dir=f"{run.parent}/cache")
    own, other = tmp_path / "own", tmp_path / "other" / ".hydra"
    own.mkdir()
    other.mkdir(parents=True)
    (other / "config.yaml").touch()
    (own / "a.png").touch()
    for given, pictures_of, line in (
        (f"{scenes}/train/well", None, "lies in data.root, where nothing is written"),
        (f"{own}/results", [str(own)], "lies in images=, where nothing is written"),
        (f"{own}/a.png", None, "cannot be written to: give another folder="),
        (str(other.parent), None, "holds another run: give another folder="),
    ):
        with pytest.raises(UserError, match=line):
            folder_of(given, [loaded], pictures_of)
    assert folder_of(None, [loaded], str(own)).resolve() == run
    assert folder_of(f"{tmp_path}/new/results", [loaded, loaded], None) == tmp_path / "new" / "results"
    assert not (tmp_path / "new").exists()


def test_mistakes_are_one_line(run, tmp_path):
    where = (f"cache_dir={run.parent}/cache", f"folder={tmp_path}/out")
    for words, line in (
        ([f"run=[{run},{run}]", *where], "a run is given twice: it would count twice"),
        ([f"run=[{run},{run.parent}/run/../other]"], "there is no folder"),
    ):
        assert_one_line_error(cli(*words, module="src.detect"), line)
    shutil.copytree(run, tmp_path / "copy")
    done = cli(f"run=[{run},{tmp_path}/copy]", module="src.detect")
    assert_one_line_error(done, "several runs have no common folder: say where to write, such as folder=")
    assert_one_line_error(cli(f"run={run}", "normal=[sick]", *where, module="src.detect"), "choose from ill, well")
    assert not (tmp_path / "out").exists()
