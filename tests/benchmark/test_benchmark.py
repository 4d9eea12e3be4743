"""The benchmark as a user types it, the gate on its loss, and the arithmetic of its table."""

import csv
import math
import os

import pytest
import torch
from omegaconf import OmegaConf

from src.benchmark import __main__ as benchmark
from src.benchmark import by_hand, gate, growth, loops, steps
from src.benchmark.images import data_overrides
from src.benchmark.loops import Loop, absent, contenders, present
from src.benchmark.settings import checked
from src.benchmark.steps import Steps, check_loss, measure
from src.benchmark.table import Table
from src.system.errors import UserError
from tests import helpers
from tests.helpers import ROOT, assert_one_line_error, built, cli, composed, data

DEFAULTS = OmegaConf.load(ROOT / "conf" / "benchmark.yaml")
needs_pythae = pytest.mark.skipif(not present("pythae"), reason="pythae is not installed: pip install '.[peers]'")


@pytest.mark.slow
def test_steps_are_measured_without_any_data_set(tmp_path, monkeypatch, caplog):
    """The real loops train in processes of their own; random images stand in for MNIST."""
    monkeypatch.setenv("CXX", "none")  # compiling takes long; without a compiler its column is empty
    few = {"experiments": "mnist_conv_tiny", "rounds": 2, "seconds": 0.01, "device": "cpu", "overrides": []}
    with caplog.at_level("INFO"):
        benchmark.main.__wrapped__(OmegaConf.create({**few, "data_dir": "none", "folder": str(tmp_path / "out")}))
    left_out = "ours compiled is left out: the loop ours has ended: error: compile=true needs a C++ compiler"
    assert left_out in caplog.text
    with (tmp_path / "out" / "steps.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["images"] == "random images"
    rivals = ["tutorial", *(["pythae"] if present("pythae") else []), "bare eager"]
    assert [key.removesuffix(" ms/step") for key in row if key.endswith(" ms/step")] == [
        *rivals, "ours", "ours compiled",
    ]  # fmt: skip
    for loop in (*rivals, "ours"):
        assert float(row[f"{loop} images/s"]) == pytest.approx(128 / float(row[f"{loop} ms/step"]) * 1000)
        assert 100 < float(row[f"{loop} peak MiB"]) < 2500
    for pair in (f"ours/{rival}" for rival in rivals):
        least, middle, most = (float(row[f"{pair}{end}"]) for end in (" min", "", " max"))
        assert 0 < least <= middle <= most
    assert row["layout"] in ("bare eager: channels_last", "bare eager: contiguous_format")
    conditions, _, *table = (tmp_path / "out" / "steps.md").read_text().splitlines()
    assert conditions in caplog.text
    assert "\n".join(table) in caplog.text
    assert "\nWritten to" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiments=[mnist_lstn]"], ["mnist_lstn", "mnist_lstm"]),
        (["folder=/proc/benchmark"], ["No such file or directory: /proc/benchmark"]),
    ],
)
def test_bad_input_is_one_line(overrides, words, tmp_path):
    done = cli(f"folder={tmp_path}/out", *overrides, module="src.benchmark")
    assert_one_line_error(done, *words)
    assert not (tmp_path / "out").exists()


def settings(**changes):
    return checked(OmegaConf.to_container(OmegaConf.merge(DEFAULTS, {"defaults": []}, changes), resolve=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"overrides": ["trainer.accumulate_grad_batches=2"]},
            "overrides=trainer.accumulate_grad_batches=2: the loops",
        ),
        ({"overrides": ["trainer.precision=16-mixed"]}, "overrides=trainer.precision=16-mixed: the loops"),
        ({"overrides": ["+trainer.overfit_batches=5"]}, "overrides=.trainer.overfit_batches=5: the loops"),
        ({"overrides": ["optimizer.weight_decay=0.1"]}, "overrides=optimizer.weight_decay=0.1: the loops"),
        ({"overrides": ["schedule=cosine"]}, "overrides=schedule=cosine: the loops"),
        ({"overrides": ["compile=true"]}, "overrides=compile=true: the loops"),  # always measured
        ({"overrides": ["data=mnist"]}, "overrides=data=mnist: the loops"),
        ({"overrides": ["hydra.run.dir=x"]}, "overrides=hydra.run.dir=x: the loops"),
        ({"overrides": ["model.latnt_dim=3"]}, "overrides=.*model.latnt_dim is no key: did you mean model.latent_dim"),
        ({"overrides": ["model.decoder.dropout=0.1"], "experiments": "mnist_lstm"}, r"model\.decoder\.dropout"),
        ({"experiments": ["digits"]}, "experiments=digits: its data are digits, not one of mnist"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_measured(changes, words):
    with pytest.raises(UserError, match=words):
        settings(**changes)


def test_a_word_is_a_list_of_one_and_nothing_is_measured_twice():
    once = settings(experiments=["mnist_lstm", "mnist_lstm"], overrides="optimizer.lr=1e-4")
    assert once["experiments"] == ["mnist_lstm"]
    assert once["overrides"] == ["optimizer.lr=1e-4"]


def of_digits(experiment: str, *overrides: str):
    """The experiment's model and pixels, on the embedded digits."""
    size = composed(f"experiment={experiment}").data.image_size
    return built(f"experiment={experiment}", "data=digits", f"data.image_size={size}", *overrides)


@pytest.mark.parametrize("experiment", DEFAULTS.experiments)
def test_the_loops_minimise_the_same_loss(experiment, monkeypatch):
    monkeypatch.setattr(steps, "TOLERANCE", 2e-5)  # the gate itself is less strict: machines round differently
    datamodule, model = of_digits(experiment)
    check_loss(model, datamodule)


@needs_pythae
def test_the_gate_covers_pythae(monkeypatch):
    from pythae.models import VAEConfig

    from src.benchmark import peer

    monkeypatch.setattr(peer, "VAEConfig", lambda reconstruction_loss: VAEConfig(reconstruction_loss="mse"))
    datamodule, model = of_digits("mnist_conv_tiny")
    with pytest.raises(UserError, match=r"the loss of src\.train and that of pythae differ by"):
        check_loss(model, datamodule)


@needs_pythae
def test_pythae_trains_the_same_network_in_its_own_pipeline(tmp_path):
    words, _ = data_overrides("mnist", tmp_path / "none", tmp_path)
    with Loop("pythae", ["experiment=mnist_conv_tiny", *words], starter=helpers.WARM) as loop:
        assert loop.run(2).steps == 2


def test_without_pythae_its_column_is_left_out_and_the_conditions_say_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "find_spec", lambda package: None)
    assert [one.name for one in contenders(gpu=False)] == ["tutorial", "bare eager", "ours", "ours compiled"]
    line = Table("steps", settings(folder=str(tmp_path), device="cpu"), absent()).conditions
    assert line.endswith("; without pythae, which is not installed: pip install '.[peers]'")
    monkeypatch.setattr(loops, "find_spec", lambda package: package)
    assert [one.name for one in contenders(gpu=False)] == ["tutorial", "pythae", "bare eager", "ours", "ours compiled"]
    assert absent() == ""


@pytest.mark.parametrize(
    "override",
    ["model.kl_weight=1.1", "model.kl_warmup_steps=10", "likelihood@model.likelihood=gaussian",
     "data.binarize=threshold", "data.dequantize=true"],
)  # fmt: skip
def test_another_loss_is_refused_before_anything_is_timed(override):
    datamodule, model = of_digits("mnist_conv_tiny", override)
    with pytest.raises(UserError, match=r"on the same batch the (loss|gradient) of src\.train and that of"):
        check_loss(model, datamodule)


def test_another_prior_is_refused(monkeypatch):
    """The gate notices what no list of keys names."""
    datamodule, model = of_digits("mnist_conv_tiny")
    model.latent_prior.scale.fill_(1.1)
    with pytest.raises(UserError, match="nothing to compare"):
        check_loss(model, datamodule)


def test_more_rounds_than_an_epoch_has_room_for_are_refused():
    with pytest.raises(UserError, match="an epoch of mnist_conv_tiny has 1 batches, too few for so many"):
        measure("mnist_conv_tiny", "digits", ["data=digits", "data.batch_size=900"], 1, 1.0)


def test_a_loop_that_cannot_start_or_has_ended_says_why():
    words = ["data=digits", "model=conv_tiny", "data.image_size=16"]
    with pytest.raises(UserError, match="there is no tutorial's loop for data=digits"):
        Loop("tutorial", words, starter=helpers.WARM).__enter__()
    with Loop("ours", [*words, "trainer.max_epochs=1", "test=false"], starter=helpers.WARM) as loop:
        assert loop.run(2).steps == 2
        with pytest.raises(UserError, match="the loop ours has ended: "):
            loop.run(10**6)


def test_a_gpu_is_compared_with_each_kind_of_the_bare_loop_in_each_layout():
    bare = {one.name: one.loops for one in contenders(gpu=True) if one.name.startswith("bare")}
    assert list(bare) == ["bare eager", "bare compiled", "bare CUDA graph"]
    assert bare["bare CUDA graph"] == ("bare graph contiguous_format", "bare graph channels_last")


class Enough(Exception):
    """Ends a loop after a step."""


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_the_bare_loop_trains_in_the_precision_of_the_experiment(precision, dtype, monkeypatch):
    """Also where the processor multiplies bfloat16: else the ratio would compare precisions. NVML costs it nothing."""
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as it is once Lightning is imported
    monkeypatch.setattr(by_hand, "keep_pages", lambda: None)  # it would stay set in this process
    seen = []

    def stop(gate, device):
        raise Enough

    def watch(module, args, output):
        if isinstance(output, torch.Tensor):  # heads return distributions
            seen.append((output.dtype, os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK")))

    monkeypatch.setattr(gate.Gate, "done", stop)
    words = ["data=digits", "model=conv_tiny", "data.image_size=8", f"trainer.precision={precision}"]
    with torch.nn.modules.module.register_module_forward_hook(watch), pytest.raises(Enough):
        by_hand.main("bare eager channels_last", "nowhere", *words)
    assert set(seen) == {(torch.float32, None), (dtype, None)}


@pytest.mark.slow
def test_growth_is_measured_and_written(tmp_path, caplog):
    """Here, not beside the other tests of growth: its loops are forked from the process that this file has started."""
    settings = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "growth.yaml"))
    settings |= {"network": "conv_tiny", "images": [200, 100], "sides": [], "latents": [], "depths": [], "rounds": 1}
    settings |= {"seconds": 0.01, "device": "cpu", "folder": str(tmp_path / "out")}
    with caplog.at_level("INFO"):
        growth.main.__wrapped__(OmegaConf.create({k: v for k, v in settings.items() if k not in ("defaults", "hydra")}))
    with (tmp_path / "out" / "growth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["axis"], int(row["size"])) for row in rows] == [("images", 100), ("images", 200)]
    seconds = {int(row["size"]): float(row["seconds"]) for row in rows}
    for row in rows:
        assert float(row["exponent"]) == pytest.approx(growth.exponent(seconds))
        assert float(row["expected"]) == pytest.approx(1)  # twice the images are twice the work
    conditions, _, *table = (tmp_path / "out" / "growth.md").read_text().splitlines()
    assert conditions in caplog.text
    assert "\n".join(table) in caplog.text
    assert len(table) == 2 + 1


def test_ratios_are_those_of_one_round():
    seconds = {"tutorial": [4.0, 40.0, 6.0], "bare eager": [1.0, 10.0, 1.0]}
    seconds |= {"ours": [2.0, 10.0, 2.0], "ours compiled": [1.0, 10.0, 4.0]}
    row = Steps("x", "mnist", 64, "32-true", seconds, dict.fromkeys(seconds, 1.0), {}).row()
    assert (row["ours/tutorial min"], row["ours/tutorial"], row["ours/tutorial max"]) == (2, 3, 4)
    assert (row["ours/bare eager min"], row["ours/bare eager"], row["ours/bare eager max"]) == (0.5, 0.5, 1)
    assert (row["ours compiled/ours min"], row["ours compiled/ours"], row["ours compiled/ours max"]) == (0.5, 1, 2)
    assert row["ours images/s"] == 32


def test_what_cannot_be_compiled_leaves_an_empty_column():
    seconds = {"tutorial": [4.0], "bare compiled": [math.nan], "ours": [2.0], "ours compiled": [math.nan]}
    cells = Steps("x", "mnist", 64, "32-true", seconds, dict.fromkeys(seconds, math.nan), {}).cells()
    assert cells["ours / tutorial"] == "2.00 (2.00–2.00)"
    assert cells["ours / bare compiled"] == cells["ours compiled / ours"] == "–"
    assert cells["images/s: tutorial / bare compiled / ours / ours compiled"] == "16 / – / 32 / –"


def test_random_images_are_of_the_kind_that_they_stand_in_for(tmp_path):
    overrides, name = data_overrides("chest_xray", tmp_path / "none", tmp_path)
    assert name == "random images"
    datamodule = data("data=chest_xray", *overrides)
    datamodule.setup("fit")
    assert len(datamodule.pool.images) == 6000
    assert len(datamodule.splits.train) > 4000  # no two files are the same
    assert datamodule.pool.classes == ["NORMAL"]  # ImageFolder wants a class
    there = tmp_path / "it's (over) there, é"
    (there / "MNIST").mkdir(parents=True)
    overrides, name = data_overrides("mnist", there, tmp_path)
    assert name == "mnist"
    assert composed("data=mnist", *overrides).data.root == str(there)
