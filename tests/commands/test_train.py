"""Test the training command as a user types it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from src.models.objectives import elbo_terms
from src.runs.checkpoints import read_weights
from src.runs.folder import RunFolder
from src.system.errors import UserError
from tests.helpers import PLAIN, QUICK, ROOT, assert_one_line_error, built, cli, command, examples


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_run_folder_is_complete(finished):
    run, _ = finished
    for name in (
        ".hydra/hydra.yaml",
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.json",
        "train.log",
    ):
        assert (run / name).stat().st_size >= (0 if name == "train.log" else 1), name
    for picture in ("reconstructions", "samples", "losses"):
        with Image.open(run / "figures" / f"{picture}.png") as image:
            assert min(image.size) > 300
            assert image.convert("L").getextrema() != (255, 255)
    assert "- seed=0" in (run / ".hydra" / "overrides.yaml").read_text()
    assert OmegaConf.load(run / ".hydra" / "config.yaml").model.latent_dim == 2


def test_metrics_record_the_result(finished):
    run, done = finished
    metrics = json.loads((run / "metrics.json").read_text())
    test = metrics["test"]
    assert test["elbo"] == pytest.approx(-test["distortion"] - test["rate"], rel=1e-5)
    assert metrics["unit"].startswith("nats per image")
    assert metrics["pseudo_likelihood"] is True
    assert metrics["names"] == {"elbo": "pseudo-elbo", "distortion": "pseudo-distortion"}
    assert "bits_per_dim" not in test
    assert metrics["data"]["images"] == {"train": 1294, "val": 144, "test": 359}
    assert re.fullmatch("[0-9a-f]{32}", metrics["data"]["fingerprint"])
    assert (metrics["seed"], metrics["tags"], metrics["epochs"]) == (0, ["quick"], 2)
    assert metrics["steps"] == 2 * (1294 // 128)
    assert metrics["train_images_per_second"] > 0
    assert metrics["peak_memory_mib"]["process"] > 100
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if commit.returncode == 0:
        assert metrics["git_commit"].startswith(commit.stdout.strip())
    assert re.search(rf"test −pseudo-elbo +{-test['elbo']:.4f}\n", done.stdout)  # as papers print it
    assert "test loss" not in done.stdout  # it equals the −elbo at a KL weight of 1
    figure = r"\d+\.\d\d"
    terms = rf"distortion {figure}  rate {figure}  train {figure}"
    assert re.search(rf"^epoch 2/2 \(best\)  val −pseudo-elbo {figure}  {terms}  (\d\.\d|\d\d+) s$", done.stdout, re.M)
    assert f"\n{metrics['trainable_parameters']:,} parameters\n" in done.stdout
    assert re.search(r"best checkpoint +\S+best\.ckpt \(epoch 2 of 2\)\n", done.stdout)
    assert re.search(r"look at it +(tensorboard --logdir |make tensorboard LOGDIR=)\S", done.stdout)


def test_tensorboard_shows_everything(finished):
    run, _ = finished
    tags: dict[str, set] = {}
    hyperparameters = {}
    for file in (run / "tensorboard").glob("events*"):
        events = EventAccumulator(str(file)).Reload()
        for kind, names in events.Tags().items():
            if isinstance(names, list):
                tags.setdefault(kind, set()).update(names)
        if (shown := events.summary_metadata.get("_hparams_/session_start_info")) is not None:
            start = HParamsPluginData.FromString(shown.plugin_data.content).session_start_info
            hyperparameters |= {key: value for key, value in start.hparams.items()}
    assert {f"{s}/{m}" for s in ("train", "val", "test") for m in ("elbo", "distortion", "rate")} <= tags["scalars"]
    assert {"step/loss", "step/grad_norm", "step/learning_rate"} <= tags["scalars"]
    assert {tag.partition("/")[0] for tag in tags["scalars"]} == {"step", "test", "train", "val"}  # no `epoch` in front
    assert {"reconstructions", "samples"} <= tags["images"]
    assert "rate_per_latent" in tags["histograms"]
    assert {"config/text_summary", "model/text_summary", "custom_scalars__config__"} <= tags["tensors"]
    assert hyperparameters["model"].string_value == "conv_tiny"
    assert hyperparameters["model.latent_dim"].number_value == 2
    assert hyperparameters["tags"].string_value == "quick"


def test_a_model_without_codes_is_trained_and_drawn_and_counts_no_active_latents(tmp_path):
    """Two groups of latents, two samples a step."""
    words = [*QUICK, "model._target_=tests.variants.Chain", "model.num_samples=2", "trainer.limit_train_batches=3"]
    done = cli(*words, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stdout
    test = json.loads((tmp_path / "metrics.json").read_text())["test"]
    assert test["elbo"] == pytest.approx(-test["distortion"] - test["rate"], rel=1e-5)
    assert "active_latents" not in test
    assert (tmp_path / "figures" / "reconstructions.png").stat().st_size > 0
    done = cli(*words, "callbacks.checkpoint.monitor=val/active_latents", f"hydra.run.dir={tmp_path}/other")
    assert_one_line_error(done, "callbacks.checkpoint.monitor=val/active_latents: the posterior of this model is not")


def test_a_second_run_does_not_overwrite_the_first(finished):
    run, _ = finished
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "train.log"}
    done = cli(*QUICK, "seed=5", f"hydra.run.dir={run}")
    assert_one_line_error(done, "already holds a run", "ckpt_path=last")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "train.log"}


@pytest.mark.skipif(sys.platform != "linux", reason="locks can be disabled only on Linux")
def test_without_locks_a_run_warns_once_and_continues(tmp_path):
    done = cli("src.train", *QUICK, *PLAIN, "trainer=debug", f"hydra.run.dir={tmp_path}", module="tests.lockless")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("has no locks (No locks available)") == 1


@pytest.mark.parametrize("key", ["compare_by", "callbacks.early_stopping.monitor"])
def test_metrics_that_these_pixels_do_not_have_are_refused_before_training(key, tmp_path):
    done = cli(*QUICK, f"{key}=val/bits_per_dim", f"hydra.run.dir={tmp_path}/run")
    assert_one_line_error(done, f"{key}=val/bits_per_dim", "choose val/elbo")
    assert not (tmp_path / "run").exists()


def test_resume_refuses_other_settings(finished):
    run, _ = finished
    done = cli(*QUICK, f"hydra.run.dir={run}", "ckpt_path=last", "seed=0", "model.kl_weight=4")
    assert_one_line_error(done, "model.kl_weight=1.0", "this resume says 4")


def test_checkpoints_that_are_missing_damaged_or_of_another_model_are_named(finished, tmp_path):
    last = finished[0] / "checkpoints" / "last.ckpt"
    _, model = built(*QUICK)
    assert read_weights(last, model)
    with pytest.raises(UserError, match="there is no checkpoint .*last.ckpt: hydra.run.dir must name"):
        RunFolder(tmp_path).start(OmegaConf.create({"ckpt_path": "last"}))
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(last.read_bytes()[:5_000])
    with pytest.raises(UserError, match="cannot read the checkpoint .*damaged"):
        read_weights(damaged, model)
    _, other = built(*QUICK, "model.latent_dim=3")
    with pytest.raises(UserError, match=r"does not fit this model: .*\[256, 2\] .*\[256, 3\] .*here"):
        read_weights(last, other)


def test_the_best_checkpoint_is_tested_and_training_stops_early(tmp_path):
    """The first epoch has the lowest rate, so its weights are tested and not the last."""
    done = cli(
        *QUICK,
        "trainer.max_epochs=9",
        "callbacks.checkpoint.monitor=val/rate",
        "model.kl_weight=0",  # the rate grows from epoch to epoch
        "callbacks.early_stopping.patience=2",
        "callbacks.early_stopping.min_delta=1e6",
        *PLAIN,
        f"hydra.run.dir={tmp_path}",
    )
    assert done.returncode == 0, done.stdout
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["epochs"] == 3  # the first is the best, two more exhaust the patience
    datamodule, model = built(*QUICK)
    rates = {}
    for name in ("best", "last"):
        path = tmp_path / "checkpoints" / f"{name}.ckpt"
        model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        x = examples(datamodule, "test", 10_000)
        rates[name] = elbo_terms(x, model.eval().infer(x)).rate.mean().item()
    assert metrics["test"]["rate"] == pytest.approx(rates["best"], rel=1e-4)
    assert abs(rates["last"] / rates["best"] - 1) > 0.01
    assert metrics["best"]["val/rate"] < 2 * metrics["test"]["rate"]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    """The resume restores dropout, dynamic binarization, the schedule and the KL warm-up.

    The killed run starts a new interpreter and the others are forked, which makes no difference.
    """
    overrides = (
        "model=conv_dropout",
        "data.image_size=32",
        "data.binarize=dynamic",
        "schedule=cosine",
        "model.kl_warmup_steps=50",
        "trainer.max_epochs=4",
        "seed=3",
        *PLAIN,
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = cli(*overrides, f"hydra.run.dir={whole}")
    assert done.returncode == 0, done.stdout

    with subprocess.Popen(
        command(*overrides, f"hydra.run.dir={killed}"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch 1"):
                break
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGKILL)
    assert (killed / "checkpoints" / "last.ckpt").exists()
    assert not (killed / "metrics.json").exists()

    done = cli(*overrides, f"hydra.run.dir={killed}", "ckpt_path=last")
    assert done.returncode == 0, done.stdout
    assert "epoch 1/" not in done.stdout
    expected, resumed = weights(whole), weights(killed)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    results = [json.loads((run / "metrics.json").read_text()) for run in (whole, killed)]
    assert results[0]["test"] == results[1]["test"]
    assert results[0]["steps"] == results[1]["steps"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.precision=bf16-true", "data.image_size=16"], ["trainer.precision=bf16-true", "bf16-mixed"]),
        (["trainer=ddp", "trainer.devices=99", "data.image_size=16"], ["trainer.devices=99 processes on a CPU: this"]),
        (["callbacks.early_stopping.monitor=val/nothing", "data.image_size=16", "trainer=debug"], ["val/nothing"]),
    ],
)
def test_bad_input_is_one_line(overrides, words, tmp_path):
    assert_one_line_error(cli(*overrides, f"hydra.run.dir={tmp_path}"), *words)


def test_overrides_that_are_given_to_make_itself_are_refused():
    """Otherwise make would silently train the default model."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

    def make(*words: str) -> subprocess.CompletedProcess:
        command = ["make", "-n", "train", f"PYTHON={sys.executable}", *words]
        return subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=False)

    for word in ("model=lstm", "model.latent_dim=8"):
        assert make(word).returncode != 0
        assert f"put overrides into ARGS: make train ARGS='{word}'" in make(word).stderr
    assert "-m src.train model=lstm\n" in make("ARGS=model=lstm").stdout


def test_a_broken_picture_is_named(picture_folder, tmp_path):
    root = picture_folder({f"{i}.png": (9, 9) for i in range(30)})
    (root / "11.png").write_bytes(b"no picture")
    overrides = ("model=conv_tiny", "data=image_folder", f"data.root={root}", f"data.cache_dir={tmp_path}/cache")
    overrides += ("data.channels=1", "data.image_size=32")
    done = cli(*overrides, f"hydra.run.dir={tmp_path}/run")
    assert_one_line_error(done, "11.png", "data.on_bad_image=skip")
    done = cli(*overrides, "data.on_bad_image=skip", "trainer=debug", *PLAIN, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stdout
    assert "1 undecodable images skipped" in done.stdout


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    """The learning rate explodes in the second epoch."""
    explode = (
        "schedule=warmup",
        "schedule.interval=epoch",
        "schedule.factory.start_factor=1e-30",
        "schedule.factory.total_iters=1",
        "optimizer.lr=1e27",
    )
    done = cli(*QUICK, *PLAIN, *explode, f"hydra.run.dir={tmp_path}")
    assert_one_line_error(done, "training stopped in epoch 2", "at step 11", "last.ckpt", "optimizer.lr")
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 0
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_one_line(tmp_path):
    assert_one_line_error(cli("trainer=gpu", f"hydra.run.dir={tmp_path}"), "trainer=cpu")
