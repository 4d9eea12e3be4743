"""The benchmark as a user types it, and the arithmetic of its table."""

import csv
import math
import os
import signal
import threading
import time

import pytest
import torch
from omegaconf import OmegaConf

from src.benchmark import epochs as epochs_part
from src.benchmark import parts
from src.benchmark import startup as startup_part
from src.benchmark.decoding import decoding
from src.benchmark.epochs import epochs
from src.benchmark.loops import Loop
from src.benchmark.measurement import Measurement
from src.benchmark.settings import checked
from src.benchmark.standin import data_overrides, write_jpegs
from src.benchmark.startup import startup
from src.benchmark.steps import Steps, count_flops, measure
from src.benchmark.written import Network, fastest_of_each_kind, variants
from src.system.errors import UserError
from tests import helpers
from tests.helpers import ROOT, assert_one_line_error, built, cli, composed, data


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_steps_and_evaluation_are_measured_without_any_data_set(tmp_path):
    """The real loops, in processes of their own; random images stand in for MNIST."""
    done = cli(
        "parts=[steps,evaluation]", "steps.experiments=[mnist_conv_tiny]", "steps.rounds=2", "steps.seconds=0.01",
        "evaluation.samples=100", "device=cpu", f"data_dir={tmp_path}/none", f"folder={tmp_path}/out",
        module="src.benchmark",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (row,) = rows_of(tmp_path / "out" / "steps.csv")
    assert row["images"] == "random images"
    for loop in ("tutorial", "eager", "ours"):
        speed, step = float(row[f"{loop} images/s"]), float(row[f"{loop} ms/step"])
        assert speed == pytest.approx(128 / step * 1000)
        assert 100 < float(row[f"{loop} peak MiB"]) < 1500
    for loop in ("tutorial", "eager"):
        least, middle, most = (float(row[f"ours/{loop}{end}"]) for end in (" least", "", " most"))
        assert 0 < least <= middle <= most
    assert 0 < float(row["of peak"]) < 1
    figures = {row["what"]: float(row["value"]) for row in rows_of(tmp_path / "out" / "evaluation.csv")}
    assert figures["importance bound, K = 100: ours / a sample at a time"] > 2
    memory = [figures[f"importance bound, K = {count}: peak memory"] for count in (100, 1000)]
    assert 100 < memory[0] <= memory[1] < memory[0] + 300  # and not ten times what the samples take
    for table in ("steps.md", "evaluation.md"):
        text = (tmp_path / "out" / table).read_text()
        assert text.splitlines()[2] in done.stdout
    assert (tmp_path / "out" / "steps.png").stat().st_size > 10_000
    assert "\nWritten to" in done.stdout
    assert "Traceback" not in done.stdout  # of a child that is ended though it has answered


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["parts=[stepz]"], ["stepz", "steps"]),
        (["steps.experiments=[mnist_lstn]"], ["mnist_lstn", "mnist_lstm"]),
        (["folder=/proc/benchmark"], ["No such file or directory: /proc/benchmark"]),
    ],
)
def test_bad_input_is_one_line(overrides, words, tmp_path):
    done = cli(f"folder={tmp_path}/out", *overrides, module="src.benchmark")
    assert_one_line_error(done, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"overrides": ["model.kl_weight=2"]}, r"model\.kl_weight=2: the loops to compare with know 1 only"),
        ({"overrides": ["schedule=cosine"]}, r"schedule\._target_=src\.training\.recipe\.Schedule: the loops"),
        ({"overrides": ["optimizer.weight_decay=0.1"]}, r"optimizer\.weight_decay=0\.1: the loops"),
        ({"overrides": ["trainer.accumulate_grad_batches=2"]}, r"trainer\.accumulate_grad_batches=2: the loops"),
        ({"overrides": ["trainer.limit_train_batches=1"]}, r"limit_train_batches=1: that is the benchmark's own"),
        ({"overrides": ["+trainer.overfit_batches=5"]}, "overfit_batches=5: that is the benchmark's own"),
        ({"overrides": ["data=mnist"]}, "data=mnist: that is the benchmark's own"),
        ({"overrides": ["trainer=ddp"]}, "trainer=ddp: that is the benchmark's own to set"),
        ({"overrides": ["modl=lstm"], "parts": ["startup"]}, "overrides=.*modl is no key: did you mean model=lstm"),
        ({"overrides": ["model.likelihood=null"]}, r"model\.likelihood=null: model\.likelihood holds keys"),
        ({"overrides": ["hydra.run.dir=x"]}, r"hydra\.run\.dir=x: that is the benchmark's own"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_measured(changes, words):
    settings = OmegaConf.load(ROOT / "conf" / "benchmark.yaml")
    del settings.defaults
    with pytest.raises(UserError, match=words):
        checked(OmegaConf.to_container(OmegaConf.merge(settings, changes), resolve=True))


def test_what_is_asked_for_twice_is_measured_once():
    settings = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "benchmark.yaml"), resolve=True)
    settings |= {"parts": ["epochs", "startup", "epochs"], "overrides": "compile=true"}
    assert checked(settings)["parts"] == ["epochs", "startup"]
    assert checked(settings)["overrides"] == ["compile=true"]


def test_more_rounds_than_an_epoch_has_room_for_are_refused():
    with pytest.raises(UserError, match="an epoch of mnist_conv_tiny has 1 batches, too few for so many"):
        measure("mnist_conv_tiny", ["data=digits", "data.batch_size=900"], 1, 1.0)


def test_a_loop_that_cannot_start_says_why():
    words = ["data=digits", "model=conv_tiny"]
    with Loop("tutorial", words, starter=helpers.WARM) as loop, pytest.raises(UserError) as caught:
        loop.run(1)
    assert "there is no tutorial's loop for data=digits" in str(caught.value)


def test_a_gpu_is_compared_with_each_kind_of_the_bare_loop():
    cfg = composed("experiment=mnist_conv_tiny", "trainer=gpu", "trainer.precision=32-true")
    names = variants(cfg, torch.device("cuda"))
    assert len(names) == 2 * 2 * 3  # layouts, precisions, kinds
    seconds = {name: 1.0 + place for place, name in enumerate(names)} | {"channels_last, bf16-mixed, CUDA graph": 0.1}
    assert fastest_of_each_kind(seconds) == {
        "eager": "contiguous, 32-true",
        "compiled": "contiguous, 32-true, compiled",
        "graph": "channels_last, bf16-mixed, CUDA graph",
    }
    assert {name.rpartition(", ")[2] for name in variants(cfg, torch.device("cpu"))} <= {"32-true", "bf16-mixed"}


def test_ratios_are_of_the_same_round():
    steps = Steps(
        "x", 64, "32-true", {"tutorial": [4.0, 40.0, 6.0], "eager": [1.0, 10.0, 1.0], "ours": [2.0, 10.0, 2.0]},
        dict.fromkeys(("tutorial", "eager", "ours"), 1.0), {"eager": "contiguous"}, 10**9,
    )  # fmt: skip
    row = steps.row(peak=1e9)
    assert (row["ours/tutorial least"], row["ours/tutorial"], row["ours/tutorial most"]) == (2, 3, 4)
    assert (row["ours/eager least"], row["ours/eager"], row["ours/eager most"]) == (0.5, 0.5, 1)
    assert row["ours images/s"] == 32
    assert row["of peak"] == 0.5


def test_operations_are_counted_as_the_formulas_say():
    """Two operations a multiplication; backwards each layer costs twice its forward pass, the first one once."""
    datamodule, model = built("model=lstm", "data.image_size=28", "model.latent_dim=4")
    hidden, rows = 64, 28
    one_direction = rows * 4 * hidden * (28 + hidden)
    head, dense = 2 * hidden * 2 * 4, 4 * math.prod(model.decoder.layers[2].unflattened_size)
    convolutions = 0
    with torch.no_grad():
        x = model.decoder.layers[:3](torch.zeros(1, 4))
        for layer in model.decoder.layers[3:]:
            if isinstance(layer, torch.nn.ConvTranspose2d):
                convolutions += x[0].numel() * layer.weight[0].numel()
            x = layer(x)
    forward = 2 * (2 * one_direction + head + dense + convolutions)
    counted = count_flops(Network(model), 32, datamodule.image_shape) / 32
    assert 2.5 * forward < counted <= 3.01 * forward


def test_stand_ins_are_of_the_kind_that_they_stand_in_for(tmp_path):
    overrides, name = data_overrides("chest_xray", tmp_path / "none", tmp_path)
    assert name == "random images"
    datamodule = data("data=chest_xray", *overrides)
    datamodule.setup("fit")
    assert len(datamodule.pool.images) == 6000
    assert len(datamodule.splits.train) > 4000  # no two files are the same
    assert datamodule.pool.classes == ["NORMAL"]  # ImageFolder wants a class
    with pytest.raises(UserError, match="digits"):
        data_overrides("digits", tmp_path, tmp_path)
    there = tmp_path / "it's (over) there, é"
    (there / "MNIST").mkdir(parents=True)
    overrides, name = data_overrides("mnist", there, tmp_path)
    assert name == "mnist"
    assert composed("data=mnist", *overrides).data.root == str(there)


@pytest.mark.slow
def test_the_other_parts_measure_what_they_name(monkeypatch):
    for part in (startup_part, epochs_part):  # only the first to start a training would wait for imports
        monkeypatch.setattr(part, "WARM", helpers.WARM)
    figures = [*startup(1, []), *decoding(None, None, 1), *epochs(100, [])]
    values = {figure.what: figure.value for figure in figures}
    assert all(math.isfinite(value) for value in values.values())
    assert {f"answer to a {mistake} / import torch" for mistake in ("typo", "bad value")} <= values.keys()
    assert values["first word of a training"] < values["first training step"]
    assert values["first training step of a sweep's point"] < values["first training step"]
    assert {f"decoding, {size} (the first): ours" for size in ("224x224", "2090x1858")} <= values.keys()
    assert values["an epoch of batches from a memory-mapped file of 2,048 MiB adds"] < 256


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path):
    write_jpegs(tmp_path / "class", 3, (64, 64))
    broken = tmp_path / "class" / "00001.jpeg"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(UserError, match=r"00001\.jpeg"):
        list(decoding(tmp_path, tmp_path, 1))


def session_and_memory():
    yield Measurement("session", os.getsid(0), "")
    yield Measurement("process", os.getpid(), "")


def asleep():
    yield Measurement("process", os.getpid(), "")
    time.sleep(600)


def fails():
    yield Measurement("process", 1 / 0, "")


def test_a_part_has_a_session_of_its_own_so_that_the_benchmark_alone_interrupts_it(monkeypatch):
    """A terminal sends Ctrl-C to all it has: a second one would cut off what the first began to put away."""
    monkeypatch.setattr(parts, "WARM", helpers.WARM)
    session, process = (int(measurement.value) for measurement in parts._apart(session_and_memory))
    assert session == process != os.getsid(0)
    with pytest.raises(UserError, match="the part fails has failed: ZeroDivisionError: division by zero"):
        parts._apart(fails)


def test_an_interrupted_part_is_ended(monkeypatch):
    started = []

    class Recording:
        def start(self, *given):
            started.append(helpers.WARM.start(*given))
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            return started[0]

    monkeypatch.setattr(parts, "WARM", Recording())
    with pytest.raises(KeyboardInterrupt):
        parts._apart(asleep)
    assert started[0].poll() is not None


def test_an_override_is_composed_with_what_it_is_for():
    settings = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "benchmark.yaml"), resolve=True)
    settings |= {"parts": ["steps"], "overrides": ["model.decoder.dropout=0.1"]}
    assert checked(settings | {"steps": settings["steps"] | {"experiments": ["mnist_conv_dropout"]}})
    with pytest.raises(UserError, match=r"model\.decoder\.dropout"):
        checked(settings | {"parts": ["startup"]})
