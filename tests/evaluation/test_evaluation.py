"""Evaluate real runs, in the process and by the command."""

import gc
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from src.evaluation import budget, feature_networks, feature_training, likelihood
from src.evaluation.budget import BYTES_PER_SECOND, OPERATIONS_PER_SECOND, Cost, chosen, nominal, settle
from src.evaluation.feature_networks import inception_features
from src.evaluation.feature_training import own_features
from src.evaluation.importance import importance_bound
from src.evaluation.latents import latents, representation
from src.evaluation.likelihood import bound, bytes_a_code, likelihood_bytes, samples_at_once
from src.evaluation.samples import memorisation, samples
from src.evaluation.suite import evaluate, parts_of
from src.evaluation.table import evaluation_table
from src.models import footprint
from src.models.discretized import DiscretizedLogisticLikelihood
from src.models.footprint import work_of
from src.models.posteriors import EvenMixture
from src.models.predictor import Predictor
from src.runs import record
from src.runs.load import load_run, predictor_of
from src.system.errors import UserError
from tests.helpers import QUICK, WARM, assert_one_line_error, built, cli, examples, folder_data
from tests.linear_gaussian import LATENTS, PIXELS, SHAPE, probabilistic_pca
from tests.variants import VARIANTS

SMALL = (
    "bound.samples=20",
    "bound.images=10",
    "samples.images=200",
    "samples.bootstrap=3",
    "representation.train_images=300",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def predictor(finished, cache) -> Predictor:
    return predictor_of(load_run(finished[0]), "test", None, "cpu", str(cache))


@pytest.fixture(scope="module")
def evaluated(finished, cache, tmp_path_factory):
    """Evaluate a finished run from the command line; return its folder and the output."""
    run = Path(shutil.copytree(finished[0], tmp_path_factory.mktemp("evaluated") / "run"))
    done = cli(f"run={run}", *SMALL, f"cache_dir={cache}", module="src.evaluate")
    assert done.returncode == 0, done.stdout
    return run, done


def test_every_figure_says_what_it_belongs_to(evaluated):
    run, done = evaluated
    record = json.loads((run / "metrics.json").read_text())
    parts = record["evaluation"]["test"]
    assert list(parts) == ["elbo", "latents", "reconstruction", "representation", "samples", "bound"]
    hashed = load_run(run).checkpoint_hash
    for name, figures in parts.items():
        assert figures["seed"] == 0, name
        assert figures["checkpoint"] == hashed
        assert figures["data"] == record["data"]["fingerprint"]
        assert figures["images"] == {"bound": 10, "samples": 200}.get(name, 359)
        assert name in done.stdout
    assert "samples, z from the mixture" in done.stdout
    assert "fewer than 2,048" in done.stdout
    assert "pseudo-likelihood, K = 20" in done.stdout
    assert parts["latents"]["verdict"] in done.stdout
    assert not list(Path.cwd().glob("evaluate.log"))


def test_evaluation_begins_with_the_figures_that_training_ended_with(evaluated, finished):
    record = json.loads((evaluated[0] / "metrics.json").read_text())
    again = record["evaluation"]["test"]["elbo"]
    trained = json.loads((finished[0] / "metrics.json").read_text())
    assert {name: again[name] for name in ("elbo", "distortion", "rate")} == {
        name: trained["test"][name] for name in ("elbo", "distortion", "rate")
    }
    assert {name: of for name, of in record.items() if name != "evaluation"} == trained
    assert "loss" not in again  # its KL weight belongs to the training


def test_the_same_evaluation_gives_the_same_file(evaluated, predictor):
    run, _ = evaluated
    before = json.loads((run / "metrics.json").read_text())["evaluation"]["test"]
    options = {
        "bound": {"samples": 20, "images": 10},
        "latents": {"components": 10},
        "reconstruction": {},
        "samples": {"images": 200, "bootstrap": 3, "components": 10, "inception": None},
        "representation": {"train_images": 300},
    }
    torch.rand(17)  # earlier draws do not matter
    for name, figures in evaluate(predictor, dict(reversed(options.items()))):
        assert json.loads(json.dumps(figures)) == before[name]


def test_tensorboard_gets_one_table_a_split_and_no_charts(evaluated, tmp_path):
    def shown(run: Path) -> list[str]:
        events = [EventAccumulator(str(file)).Reload() for file in (run / "tensorboard").glob("events*")]
        tags = {tag for file in events for tag in file.Tags()["scalars"]}
        assert not any(tag.startswith("evaluation") for tag in tags)
        return [e.tensor_proto.string_val[0].decode() for file in events for e in table_of(file)]

    def table_of(file: EventAccumulator) -> list:
        tag = "evaluation/test/text_summary"
        return file.Tensors(tag) if tag in file.Tags()["tensors"] else []

    run = Path(shutil.copytree(evaluated[0], tmp_path / "run"))
    (table,) = shown(run)  # of six parts, that came one by one
    figures = json.loads((run / "metrics.json").read_text())["evaluation"]["test"]
    assert f"| elbo | −pseudo-elbo | {-figures['elbo']['elbo']:.4f} |" in table
    for part, name in (
        ("samples", "classifier.sets.prior.frechet_distance.value"),
        ("representation", "linear_probe.accuracy"),
    ):
        assert f"| {part} | {name} | " in table
    assert not {"checkpoint", "seed", "bound.seed"} & set(table.split())


def test_parts_are_kept_for_the_same_weights_only(evaluated, tmp_path):
    run = Path(shutil.copytree(evaluated[0], tmp_path / "run"))

    def parts():
        return json.loads((run / "metrics.json").read_text())["evaluation"]["test"]

    loaded = load_run(run)
    ((name, figures),) = evaluate(
        predictor_of(loaded, "test", None, "cpu", "cache"), {"bound": {"samples": 3, "images": 4}}
    )
    record.EvaluationRecord(loaded, "test").keep(name, figures)
    assert parts()["bound"]["samples"] == 3
    assert len(parts()) == 6
    other = loaded._replace(checkpoint_hash="another")
    record.EvaluationRecord(other, "test").keep("elbo", {"checkpoint": other.checkpoint_hash, "data": "x"})
    assert list(parts()) == ["elbo"]


def test_two_evaluations_at_once_keep_both_results(finished, tmp_path):
    loaded = load_run(shutil.copytree(finished[0], tmp_path / "run"))
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(loaded.record))
    stamp = {"checkpoint": loaded.checkpoint_hash, "data": "x"}
    processes = multiprocessing.get_context("fork")
    together = processes.Barrier(2)

    def evaluation(name: str) -> None:
        keeper = record.EvaluationRecord(loaded, "test")
        together.wait()
        for number in range(20):
            keeper.keep(f"{name}{number}", stamp)

    both = [processes.Process(target=evaluation, args=(name,)) for name in ("elbo", "latents")]
    for process in both:
        process.start()
    for process in both:
        process.join()
    kept = json.loads((tmp_path / "run" / "metrics.json").read_text())["evaluation"]["test"]
    assert [process.exitcode for process in both] == [0, 0]
    assert len(kept) == 40


def test_an_interrupted_run_is_evaluated_to_the_same_file_twice(finished, tmp_path, caplog):
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    (run / "metrics.json").unlink()
    files = []
    for _ in range(2):
        loaded = load_run(run, "last")
        keeper = record.EvaluationRecord(loaded, "val")
        for part in evaluate(
            predictor_of(loaded, "val", None, "cpu", "cache"), {"elbo": {}, "latents": {"components": 2}}
        ):
            keeper.keep(*part)
        files.append((run / "metrics.json").read_bytes())
    assert files[0] == files[1]
    assert json.loads(files[0])["evaluation"]["val"]["elbo"]["images"] == 144
    assert "records no data fingerprint" not in caplog.text  # its checkpoint has one


AUTO = {"bound": {"samples": "auto", "images": "auto"}, "samples": {"images": "auto"}}


def test_expensive_parts_are_made_to_fit_into_a_time(predictor, caplog):
    caplog.set_level("INFO")
    full = settle(predictor, AUTO, None)
    assert full.options == {"bound": {"samples": 5_000, "images": 100}, "samples": {"images": 359}}
    assert not full.reduced
    least = settle(predictor, AUTO, 1e-9)
    assert least.options == {"bound": {"samples": 100, "images": 20}, "samples": {"images": 359}}
    hint = (
        "reduced to fit into the budget: samples 100 of 5,000 and images 20 of 100; for all type parts=[bound] budget="
    )
    assert least.reduced["bound"].startswith(hint)
    assert hint in caplog.text
    minutes = int(re.search("budget=([0-9]+) or budget=null", least.reduced["bound"])[1])
    alone = {"bound": AUTO["bound"]}
    assert settle(predictor, alone, minutes).options["bound"] == full.options["bound"]  # the advice holds
    given = {"bound": {"samples": 7, "images": "auto"}}
    assert settle(predictor, given, 1e-9).options == {"bound": {"samples": 7, "images": 20}}
    given = {"bound": {"samples": 3_000, "images": None}}  # what was typed is taken, however long it may take
    assert settle(predictor, given, 1e-9) == ({"bound": {"samples": 3_000, "images": 359}}, {})
    assert settle(predictor, {"elbo": {}}, 1e-9).options == {"elbo": {}}


def test_a_reduced_part_says_so_in_the_table_and_in_the_record(predictor):
    ((name, figures),) = evaluate(predictor, {"bound": {"samples": "auto", "images": "auto"}}, 1e-9)
    assert (figures["samples"], figures["images"]) == (100, 20)
    assert "samples 100 of 5,000 and images 20 of 100" in figures["reduced"]
    assert figures["reduced"] in evaluation_table({name: figures}, {"elbo": "elbo"})


def test_sizes_follow_from_the_model_and_not_from_the_clock(predictor, monkeypatch):
    expected = settle(predictor, AUTO, 0.5)
    monkeypatch.setattr(budget, "_seconds", lambda run: 1e6)  # an infinitely slow machine
    assert settle(predictor, AUTO, 0.5) == expected


def test_a_forecast_measures_a_chunk_as_large_as_the_bounds_own(predictor, monkeypatch):
    """Of fewer samples each would bear more of what a call costs."""
    chunks = []

    def recorded(model, x, samples, at_once):
        chunks.append((len(x), samples, at_once))
        return importance_bound(model, x, samples, at_once)

    monkeypatch.setattr(budget, "importance_bound", recorded)
    own = samples_at_once(bytes_a_code(predictor.model), 5_000)[1]
    for count in (20, own + 1):
        assert budget.measured(predictor, {"bound": {"samples": count, "images": 10}}).weighing > 0
    assert {*chunks} == {(1, 20, 20), (1, own, own)}
    chunks.clear()
    assert budget.measured(predictor, {"samples": {"images": 10}}).weighing == 0
    assert not chunks


def test_a_cost_is_counted_in_operations_and_bytes():
    """A multiply-add is two operations; fused LSTMs are counted as their matrix products."""
    layer, x = nn.Linear(30, 50), torch.zeros(1, 30)
    assert work_of(layer, lambda: layer(x)) == (2 * 30 * 50, 4 * (30 + 50))
    lstm, rows = nn.LSTM(28, 64, batch_first=True, bidirectional=True), torch.zeros(1, 28, 28)
    assert work_of(lstm, lambda: lstm(rows)).operations == 28 * 2 * (2 * 4 * 64 * (28 + 64))


@pytest.mark.parametrize(("posterior", "passes"), [("gaussian", 0), ("iaf", 2)])
def test_a_sample_of_a_flow_costs_a_pass_through_its_networks(posterior, passes, cache):
    datamodule, model = built("model=mlp", *QUICK[1:], "model.latent_dim=3", f"posterior@model.posterior={posterior}")
    cost = nominal(Predictor(model.eval(), datamodule, cache_dir=cache))
    layers = [(3, 256), (256, 256), (256, 6)]
    seconds = sum(2 * i * o / OPERATIONS_PER_SECOND + 4 * (i + o) / BYTES_PER_SECOND for i, o in layers)
    rest = cost.decoding + likelihood_bytes(model) / BYTES_PER_SECOND
    assert cost.weighing - rest == pytest.approx(passes * seconds, abs=1e-12)


def test_more_time_lets_more_samples_fit():
    cost = Cost(encoding=0.01, decoding=0.01, weighing=0.01, features=0.001)

    def sizes(seconds: float) -> dict[str, dict[str, int]]:
        return chosen(cost, AUTO, seconds, train=60_000, judged=10_000)

    limits = (0, 3_000, 6_000, 9_000, 60_000)
    found = [sizes(limit) for limit in limits]
    seconds = [cost.of(of, 60_000, 10_000) for of in found]
    assert seconds == sorted(seconds)
    assert all(taken <= limit for taken, limit in zip(seconds[1:], limits[1:], strict=True))
    assert found[0] == {"bound": {"samples": 100, "images": 20}, "samples": {"images": 500}}
    assert found[-1] == {"bound": {"samples": 5_000, "images": 100}, "samples": {"images": 10_000}}


def test_a_classifier_goes_on_where_its_training_was_interrupted(predictor, tmp_path, monkeypatch, caplog):
    """Its training images are binarized at random; the resumed training draws the same ones."""
    caplog.set_level("INFO")
    predictor.datamodule.binarize = "dynamic"
    monkeypatch.setattr(feature_training, "STEPS", 45)  # of 11 an epoch
    whole = own_features(predictor.datamodule, tmp_path / "whole", predictor.device)

    def interrupted(epochs, what, total, done):
        assert (total, done) == (5, 0)
        yield epochs[0]
        yield epochs[1]
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(feature_training, "progress", interrupted)
        with pytest.raises(KeyboardInterrupt):
            own_features(predictor.datamodule, tmp_path / "cut", predictor.device)
    (unfinished,) = (tmp_path / "cut").iterdir()
    assert torch.load(unfinished, weights_only=True)["epochs"] == 2
    monkeypatch.setattr(
        feature_training, "progress", lambda epochs, what, total, done: bars.append((total, done)) or epochs
    )
    bars = []
    place = feature_training.kept(predictor.datamodule, tmp_path / "cut", predictor.device)
    assert feature_training._epochs_done(place.unfinished) == 2
    again = own_features(predictor.datamodule, tmp_path / "cut", predictor.device)
    assert bars == [(5, 2)]
    assert "resumes after 2 of 5 epochs" in caplog.text
    assert again.facts == whole.facts  # with the hash of the weights
    assert not unfinished.exists()


def test_an_interrupted_evaluation_shows_what_was_finished(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    words = (f"run={run}", "parts=[elbo,bound]", "bound.samples=100000000", f"cache_dir={tmp_path}")
    with (tmp_path / "output.txt").open("w+") as output:
        process = WARM.start("src.evaluate", words, dict(os.environ), output)
        while "2/2 bound" not in (tmp_path / "output.txt").read_text():
            time.sleep(0.1)
            assert process.poll() is None, (tmp_path / "output.txt").read_text()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    said = (tmp_path / "output.txt").read_text()
    assert "elbo (359 images)" in said
    assert re.search(r"To go on: python -m src.evaluate .*run=\S+ .*'parts=\[bound\]'", said)
    assert "error: interrupted; what was finished is kept" in said


def test_bad_input_is_one_line():
    done = cli("run=outputs/nothing/here", module="src.evaluate")
    assert_one_line_error(done, "there is no folder outputs/nothing/here")
    for command, key in (("evaluate", "run"), ("explore", "run"), ("report", "folder")):
        done = cli("outputs/nothing/here", module=f"src.{command}")
        assert_one_line_error(done, f"cannot read 'outputs/nothing/here': write {key}=outputs/nothing/here")
    assert not Path("outputs/nothing").exists()


def test_impossible_values_are_refused(predictor, monkeypatch, tmp_path):
    for part, values, words in (
        ("bound", {"samples": 0, "images": None}, "bound.samples=0"),
        ("bound", {"samples": 1, "images": "all"}, "bound.images=all"),
        ("samples", {"images": 2}, "samples.images=2: give a whole number of at least 10"),
        ("samples", {"bootstrap": 1e3}, "samples.bootstrap=1000.0"),
        ("latents", {"components": 0}, "latents.components=0"),
        ("representation", {"train_images": True}, "representation.train_images=true"),
    ):
        with pytest.raises(UserError, match=words):  # before the first part is computed
            next(evaluate(predictor, {"elbo": {}, part: values}))
    for parts in ("fid", []):
        with pytest.raises(UserError, match="give all, one or a list .* of elbo, latents"):
            parts_of(parts)
    with torch.no_grad():
        next(predictor.model.decoder.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="is not a finite number"):
        list(evaluate(predictor, {"reconstruction": {}}))
    with pytest.raises(UserError, match="not finite"):
        samples(predictor, 50, 5, 10, None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"samples.inception=true needs .*weights-inception"):
        inception_features(True)
    assert inception_features(None) is None


PARTS_OF = {"mixture": ["prior@model.prior=mixture", "model.prior.components=10"], "chain": VARIANTS["chain"]}


@pytest.mark.parametrize(
    ("variant", "reason"), [("mixture", None), ("chain", "the posterior of this model is not a Gaussian of")]
)
def test_parts_about_codes_ask_the_model_whether_it_has_them(variant, reason, cache):
    datamodule, model = built(*QUICK, *PARTS_OF[variant])
    predictor = Predictor(model.eval(), datamodule, cache_dir=cache)
    options = {
        "elbo": {},
        "latents": {"components": 10},
        "reconstruction": {},
        "representation": {"train_images": 300},
        "samples": {"images": 50, "bootstrap": 3, "components": 2, "inception": None},
        "bound": {"samples": 20, "images": "auto"},
    }
    figures = dict(evaluate(predictor, options, budget=1e-3))
    assert figures["bound"]["images"] < 359
    table = evaluation_table(figures, model.metric_names(datamodule.pixels))
    without_codes = variant == "chain"
    if without_codes:
        assert figures["latents"]["skipped"].startswith(reason)
        assert f"not computed: {reason}" in table
    else:  # the rate against the model's own prior, from other draws than those of the elbo
        assert figures["latents"]["rate"] == pytest.approx(figures["elbo"]["rate"], abs=0.2)
    assert ("skipped" in figures["representation"]) is without_codes
    for network in ("classifier", "random network"):
        if network in figures["samples"]:
            assert ("skipped" in figures["samples"][network]["sets"]["mixture"]) is without_codes
    assert ("samples, z from the mixture  not computed" in table) is without_codes
    assert ("active_latents" in figures["elbo"]) is not without_codes
    # Both are of the same images and weights; the bound is of fewer.
    assert figures["bound"]["log_likelihood"] >= figures["bound"]["elbo_of_these_images"]
    assert figures["bound"]["elbo_of_these_images"] == pytest.approx(figures["elbo"]["elbo"], rel=0.1)


class Mixture(nn.Module):
    """A prior of 5,000 mixtures of 7 Gaussians."""

    def forward(self, encode, positions=None):
        components = EvenMixture(Independent(Normal(torch.zeros(5_000, 7, LATENTS), 1.0), 1))
        return MixtureSameFamily(Categorical(logits=torch.zeros(5_000)), components)


@pytest.mark.parametrize(
    ("posterior", "codes"), [("gaussian", "means"), ("full_gaussian", "means"), ("mixture", "means"), ("iaf", "draws")]
)
def test_reconstructions_are_of_posterior_means_or_say_that_they_are_not(posterior, codes):
    datamodule, model = built("model=conv_tiny", "data.image_size=8", f"posterior@model.posterior={posterior}")
    datamodule.setup("test")
    predictor = Predictor(model.eval(), datamodule)
    (part,) = evaluate(predictor, {"reconstruction": {}})
    assert part[1]["codes"] == codes
    assert ("of codes drawn from q(z|x)" in evaluation_table(dict([part]), {})) is (codes == "draws")
    x = examples(datamodule, "test", 5)
    with torch.no_grad():
        q = model.posterior(x)
        of_mean = model.decode(q.mean).mean if codes == "means" else None
    ours = next(predictor.reconstruct([x]))
    assert codes == "draws" or torch.allclose(ours, of_mean, atol=1e-6)


def test_codes_are_decoded_as_many_at_once_as_the_largest_layer_lets():
    """conv_wide's largest layer holds 250 times its image: counted by the image alone, it took 7.8 GB."""
    model, _ = probabilistic_pca()
    images = 8 * PIXELS * 4  # what the likelihood holds
    assert bytes_a_code(model) == images
    plain, model.likelihood = model.likelihood, DiscretizedLogisticLikelihood(10)
    assert bytes_a_code(model) == 30 * images  # three numbers of each component a pixel
    model.likelihood = plain
    model.decoder = nn.Sequential(nn.Linear(LATENTS, 10_000), nn.Linear(10_000, PIXELS), nn.Unflatten(1, SHAPE))
    assert bytes_a_code(model) == (10_000 + PIXELS) * 4
    assert not model.decoder[0]._forward_hooks
    model.latent_prior = Mixture()
    assert bytes_a_code(model) == 3 * 5_000 * 7 * LATENTS * 4  # a few copies of each Gaussian of each component
    assert samples_at_once(2**20, 5_000) == (1, 64)
    assert samples_at_once(2**12, 1_000) == (8, 2_048)
    assert samples_at_once(2**40, 5_000) == (1, 1)
    _, wide = built("model=conv_wide", "data=digits", "data.image_size=28")
    assert bytes_a_code(wide.eval()) == 2 * 128 * 28 * 28 * 4  # into and out of its last batch norm


def test_no_more_pass_through_a_network_at_once_than_its_largest_layer_allows(monkeypatch):
    """The images pass a layer of 0.4 MiB; with and without the limit the results agree up to rounding."""
    datamodule, model = built(*QUICK)
    side = 320
    large = [nn.Upsample((side, side)), nn.AdaptiveAvgPool2d(16)]
    model.encoder = nn.Sequential(*large, model.encoder)
    model.decoder = nn.Sequential(nn.Unflatten(1, (1, 1, -1)), *large)
    seen = []
    for network in (model.encoder, model.decoder):
        network.register_forward_hook(lambda network, given, made: seen.append(len(given[0])))

    def figures() -> tuple[list[torch.Tensor], int]:
        seen.clear()
        predictor = Predictor(model.eval(), datamodule)
        x = examples(datamodule, "test", 200)
        return [*predictor.codes("test"), *predictor.reconstruct([x]), torch.cat([*predictor.generate(300)])], max(seen)

    limited, at_once = figures()
    assert at_once * 4 * side**2 <= footprint.BYTES_AT_ONCE
    monkeypatch.setattr(footprint, "BYTES_AT_ONCE", 2**40)
    unlimited, at_once = figures()
    assert at_once == 250
    torch.testing.assert_close(limited, unlimited)
    assert footprint.largest_layer(nn.LSTM(3, 5), torch.zeros(1, 7, 3)) == 4 * (21 + 35 + 2 * 35)  # output, states


def test_the_bound_of_a_whole_split(predictor):
    figures = bound(predictor, 5, None)
    assert figures["images"] == 359
    assert figures["log_likelihood"] > figures["elbo_of_these_images"]


def test_a_long_bound_keeps_no_tensor_of_an_image(predictor, monkeypatch):
    """Small tensors that stay between large ones that are freed fragment the memory: 6 MB for each image."""
    alive = []

    def spy(*args):
        gc.collect()
        alive.append(sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()))
        return importance_bound(*args)

    monkeypatch.setattr(likelihood, "importance_bound", spy)
    bound(predictor, 5, 64)
    assert len(alive) == 8
    assert alive[-1] == alive[1]


def test_a_model_collapsed_by_construction_is_called_collapsed(predictor):
    """Its encoder returns N(0, 1) for every image; sampled codes still have variance 1."""
    with torch.no_grad():
        predictor.model.posterior_head.weight.zero_()
        predictor.model.posterior_head.bias.zero_()
    figures = latents(predictor, components=2)
    assert figures["active"] == 0
    assert "complete posterior collapse" in figures["verdict"]
    assert figures["rate"] == pytest.approx(0, abs=1e-6)
    assert figures["mutual_information"][0] == pytest.approx(0, abs=1e-6)
    assert min(figures["aggregate_std"]) > 0.9


def test_copies_of_training_images_are_noticed(predictor):
    """One model returns its training images, the other unseen ones."""
    module, count = predictor.datamodule, 140
    for split, expected in (("train", 1.0), ("val", 0.0)):
        images = module.pool.images[module.spread(split, count)] / 255
        predictor.generate = lambda number, images=images: iter([images[:number]])
        figures = memorisation(predictor, count)
        assert figures["nearer_to_training"] == pytest.approx(expected, abs=0.02)
        assert figures["standard_error"] < 0.05
    predictor.generate = lambda number: iter([images[:1].expand(number, -1, -1, -1)])
    assert memorisation(predictor, count)["standard_error"] > 0.2  # one image again and again proves nothing


def test_the_classifier_is_good_and_made_once(evaluated, cache, monkeypatch):
    datamodule, _ = built(*QUICK)
    monkeypatch.setattr(feature_training, "_train", None)  # nothing to train: it is read
    made = own_features(datamodule, cache, torch.device("cpu"))
    assert made.name == "classifier"
    assert made.facts["validation_accuracy"] > 0.95
    images = examples(datamodule, "test", 300)
    vectors, logits = made([images[:200], images[200:]], torch.device("cpu"))
    assert vectors.shape == (300, feature_networks.DIMENSIONS)
    labels = datamodule.pool.labels[datamodule.spread("test", 300)]
    assert (logits.argmax(1) == labels).double().mean() > 0.95


def test_a_damaged_classifier_is_made_again(tmp_path, monkeypatch):
    datamodule, _ = built(*QUICK)
    monkeypatch.setattr(feature_training, "STEPS", 20)
    made = own_features(datamodule, tmp_path, torch.device("cpu"))
    assert feature_training.making(datamodule, tmp_path, torch.device("cpu")) == 0
    (path,) = tmp_path.glob("features-digits-*.pt")
    path.write_bytes(b"broken")
    assert own_features(datamodule, tmp_path, torch.device("cpu")).facts["hash"] == made.facts["hash"]


def test_images_without_classes_get_a_random_network_and_no_probe(picture_folder, tmp_path):
    root = picture_folder({f"{i:03}.png": (20, 20, 3) for i in range(120)})
    datamodule = folder_data(root, tmp_path, "data.channels=3", "data.test_fraction=0.3")
    _, model = built("model=conv_tiny", "data=image_folder", f"data.root={root}", "data.image_size=16",
                     f"data.cache_dir={tmp_path}/cache")  # fmt: skip
    predictor = Predictor(model.eval(), datamodule, cache_dir=tmp_path)
    figures = samples(predictor, 30, 2, 2, None)
    assert "classifier" not in figures
    compared = figures["random network"]["sets"]
    assert compared["prior"]["score"] is None
    # The images are noise: training images resemble test images, those of an untrained model do not.
    assert compared["training"]["frechet_distance"]["value"] < compared["prior"]["frechet_distance"]["value"]
    assert representation(predictor, 100) == {"skipped": "the images have no class labels"}
