"""Test noise, means, checkpoints and history without a subprocess."""

import math
import sys
import time

import lightning as L
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from omegaconf import open_dict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard.summary import hparams

from hydra_plugins.sweep_callback import Sweep
from src.runs import build
from src.system.errors import UserError
from src.training.dashboard import Dashboard, summary_table
from src.training.epoch_means import ExampleMean
from src.training.history import EpochLine, History, Throughput, _time_left, epochs_of, mark_kept
from src.training.resume import BestCheckpoint, PatientEarlyStopping, ReproducibleNoise
from tests.gpu_check.__main__ import Checks
from tests.gpu_check.spy import Spy
from tests.helpers import SMALL, built, composed, examples, fit, multirun_config


def test_means_are_exact_over_unequal_batches():
    values = torch.rand(103, 4, dtype=torch.float64) * 1e3
    mean = ExampleMean(4)
    for part in values.split(10):
        mean.update(part)
    torch.testing.assert_close(mean.compute(), values.mean(0), rtol=1e-12, atol=0)


def test_logged_validation_is_the_mean_over_the_split():
    datamodule, model = built(*SMALL, "data.batch_size=50")
    trainer = fit(model, datamodule, limit_train_batches=3)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for stage in ("train", "val"):
        assert metrics[f"{stage}/elbo"] == pytest.approx(
            -metrics[f"{stage}/distortion"] - metrics[f"{stage}/rate"], rel=1e-5
        )
        assert metrics[f"{stage}/loss"] == pytest.approx(-metrics[f"{stage}/elbo"], rel=1e-5)
    # The rate needs no noise: compute it in one pass over the whole split.
    model.eval()
    images = examples(datamodule, "val", len(datamodule.splits.val))
    posterior = model.posterior(images).base_dist
    rate = 0.5 * (posterior.loc**2 + posterior.scale**2 - 1) - posterior.scale.log()
    assert metrics["val/rate"] == pytest.approx(rate.sum(1).mean().item(), rel=1e-4)


def test_bits_per_dim_is_logged_for_binary_pixels_only():
    datamodule, model = built(*SMALL, "data.binarize=threshold")
    metrics = fit(model, datamodule, limit_train_batches=2).callback_metrics
    assert float(metrics["val/bits_per_dim"]) == pytest.approx(-float(metrics["val/elbo"]) / 64 / math.log(2), rel=1e-5)
    datamodule, model = built(*SMALL)
    assert "val/bits_per_dim" not in fit(model, datamodule, limit_train_batches=2).callback_metrics


@pytest.mark.parametrize(
    ("fixed", "columns"),
    [((), set()), (("tags=[a$, 2024]",), {"tags"}), (("tags=choice([a],[b])",), {"tags"})],
)
def test_the_hparams_tab_shows_whatever_a_sweep_varies(fixed, columns, tmp_path, monkeypatch):
    swept = {
        "model.kl_weight": "1,2",
        "callbacks.early_stopping.patience": "3,4",
        "++trainer.accumulate_grad_batches": "1,2",
        "optimizer": "adam,sgd",
        "data.root": "'caf\udce9',b",
    }
    monkeypatch.setattr(sys, "argv", ["train"])
    fixed = ("data=image_folder", *fixed)
    grid = [*fixed, *(f"{key}={values}" for key, values in swept.items()), f"hydra.sweep.dir={tmp_path}"]
    sweep = multirun_config(*grid)
    sweep.hydra.overrides.hydra = [grid[-1]]
    sweep.hydra.overrides.task = grid[:-1]
    sweep.hydra.sweep.dir = str(tmp_path)
    Sweep().on_multirun_start(sweep)
    content = EventAccumulator(str(tmp_path)).Reload().summary_metadata["_hparams_/experiment"].plugin_data.content
    names = {column.name for column in HParamsPluginData.FromString(content).experiment.hparam_infos}
    assert names == {key.lstrip("+") for key in swept} | columns

    words = [word.replace("choice([a],[b])", "[a]") for word in fixed]
    words += [f"{key}={values.split(',')[0]}" for key, values in swept.items()]
    point = multirun_config(*words, f"run_dir={tmp_path}")
    HydraConfig.instance().set_config(point)
    try:
        with open_dict(point):
            del point["hydra"]
        shown = build.hyperparameters(point)
    finally:
        HydraConfig.instance().cfg = None
    assert names <= shown.keys()
    assert (shown["callbacks.early_stopping.patience"], shown["optimizer"]) == (3, "adam")
    assert shown["data.root"] == r"caf\xe9"  # a string that an event file can hold
    assert shown["tags"] == {"": "", "tags=[a$, 2024]": "a$, 2024"}.get("".join(fixed[1:]), "a")
    assert "run_dir" not in shown
    assert all(record.SerializeToString() for record in hparams(shown, {"val/elbo": None}))


def test_batch_norm_needs_two_images(picture_folder, tmp_path):
    root = picture_folder({f"{i}.png": (9, 9) for i in range(3)})
    folder = ("data=image_folder", f"data.root={root}", f"data.cache_dir={tmp_path}/cache", "data.channels=1")
    datamodule, model = built("model=conv_tiny", *folder, "data.image_size=8")
    with pytest.raises(UserError, match="1 training image: this model has batch norm.*model=conv_shallow"):
        fit(model, datamodule)
    datamodule, model = built(*SMALL, "data.batch_size=1")
    with pytest.raises(UserError, match="data.batch_size=1: this model has batch norm"):
        fit(model, datamodule)


def test_a_stopped_run_stays_stopped():
    datamodule, model = built(*SMALL)
    stopper = PatientEarlyStopping(monitor="val/elbo", mode="max", patience=2, min_delta=1e6)
    assert fit(model, datamodule, stopper, epochs=9).current_epoch == 3
    again = PatientEarlyStopping(monitor="val/elbo", mode="max", patience=2, min_delta=1e6)

    class Restore(L.Callback):  # as a checkpoint does
        def on_fit_start(self, trainer, pl_module):
            again.load_state_dict(stopper.state_dict())

    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, datamodule, Restore(), again, epochs=9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_best_checkpoint_belongs_to_the_folder_it_is_in(tmp_path):
    datamodule, model = built(*SMALL)

    def checkpoint(folder):
        return BestCheckpoint(dirpath=folder, filename="best", monitor="val/elbo", mode="max")

    first = checkpoint(tmp_path / "here")
    fit(model, datamodule, first)
    (tmp_path / "here").rename(tmp_path / "there")
    moved, fresh = checkpoint(tmp_path / "there"), checkpoint(tmp_path / "new")
    for other in (moved, fresh):
        other.load_state_dict(first.state_dict())
    assert moved.best_model_path == str(tmp_path / "there" / "best.ckpt")
    assert moved.best_model_score == first.best_model_score
    assert list(moved.best_k_models) == [moved.best_model_path]
    assert (fresh.best_model_path, fresh.best_model_score) == ("", None)


def test_the_gpu_checks_spy_finds_a_wrong_memory_layout():
    """It passes an ordinary training, and stops one whose optimizer state has another layout than the weights."""
    datamodule, model = built(*SMALL)
    fit(model, datamodule, Spy(), limit_train_batches=2)

    class Spoil(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            for parameter, state in trainer.optimizers[0].state.items():
                if parameter.dim() == 4 and 1 not in parameter.shape:
                    state["exp_avg"] = state["exp_avg"].contiguous(memory_format=torch.contiguous_format).clone()

    with pytest.raises(AssertionError, match="another layout"):
        fit(model, datamodule, Spoil(), Spy(), limit_train_batches=2)


def test_a_gpu_check_that_raises_has_failed(tmp_path, capsys):
    checks = Checks(tmp_path, "cpu", 1.0)
    checks.check("fine", lambda: None)
    checks.check("broken", lambda: torch.empty(-1))
    assert checks.failed == ["broken"]
    assert "FAIL broken (0 s) RuntimeError" in capsys.readouterr().out


def test_throughput_does_not_depend_on_when_validation_comes():
    datamodule, model = built(*SMALL)
    clocks = []
    for interval in (1.0, 0.25):
        throughput = Throughput()
        created = time.perf_counter()
        fit(model, datamodule, throughput, epochs=2, val_check_interval=interval)
        clocks.append(throughput.seconds)
        assert 0 < throughput.seconds < throughput.elapsed <= time.perf_counter() - created + 1
    assert clocks[1] > clocks[0] / 3  # a quarter if the timer stopped at the first validation


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_gradients_are_clipped_in_every_precision(precision, algorithm):
    datamodule, model = built(*SMALL)
    largest = []

    class Listen(L.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if gradients:
                biggest = max(g.abs().max() for g in gradients)
                largest.append((torch.nn.utils.get_total_norm(gradients) if algorithm == "norm" else biggest).item())

    clipping = {"gradient_clip_val": 0.5, "gradient_clip_algorithm": algorithm}
    # With precision=16-mixed Lightning would use bfloat16 on a CPU.
    half = (
        [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))]
        if precision == "16-mixed"
        else []
    )
    computing = {"plugins": half} if half else {"precision": precision}
    fit(model, datamodule, Listen(), limit_train_batches=4, limit_val_batches=0, **clipping, **computing)
    assert largest
    assert max(largest) == pytest.approx(0.5, rel=1e-3)


def test_noise_of_an_epoch_does_not_depend_on_what_came_before():
    def draws(callback_epochs, disturb):
        seen = {}

        class Listen(L.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                if batch_idx == 0:
                    seen[trainer.current_epoch] = torch.rand(3)

            def on_validation_epoch_start(self, trainer, pl_module):
                seen.setdefault("validation", []).append(torch.rand(disturb)[:2])

        datamodule, model = built(*SMALL)
        fit(model, datamodule, ReproducibleNoise(7), Listen(), epochs=callback_epochs, limit_train_batches=2)
        return seen

    long, short = draws(3, 5), draws(2, 500)
    assert torch.equal(long[1], short[1])
    assert not torch.equal(long[0], long[1])
    assert all(torch.equal(long["validation"][0], other) for other in long["validation"])


def test_history_and_throughput_survive_a_checkpoint():
    datamodule, model = built(*SMALL)
    history, throughput = History(), Throughput()
    fit(model, datamodule, history, throughput, epochs=2)
    assert [epoch["epoch"] for epoch in history.epochs] == [0, 1]
    assert all({"train/elbo", "val/elbo", "train/rate"} <= epoch.keys() for epoch in history.epochs)
    assert throughput.images == 2 * (len(datamodule.splits.train) // 64) * 64
    other, later = Throughput(), History()
    other.load_state_dict(throughput.state_dict())
    later.load_state_dict(history.state_dict())
    assert other.images_per_second == throughput.images_per_second
    assert later.epochs == history.epochs


def test_epochs_without_a_validation_have_none_of_its_metrics(tmp_path, caplog):
    """Lightning keeps the metrics of the last validation in ``callback_metrics``."""
    plateau = ("schedule=plateau", "schedule.factory.patience=0", "+schedule.factory.threshold=1e6")
    plateau += ("+schedule.factory.threshold_mode=abs",)
    places = (f"run_dir={tmp_path}", "~logger", "~callbacks.dashboard", "~callbacks.figures", "~callbacks.progress_bar")
    every = ("trainer.check_val_every_n_epoch=3", "trainer.max_epochs=7", "trainer.limit_train_batches=2")
    cfg = composed(*SMALL, *plateau, *places, *every)
    datamodule, model = built(*SMALL, *plateau, *every)
    trainer = build.build_trainer(cfg)
    saved = []

    class Listen(Checkpoint):
        def on_train_epoch_end(self, trainer, pl_module):
            saved.append((tmp_path / "checkpoints" / "best.ckpt").exists())

    trainer.callbacks.append(Listen())
    with caplog.at_level("INFO"):
        trainer.fit(model, datamodule)
    history = next(c for c in trainer.callbacks if isinstance(c, History))
    assert ["val/elbo" in epoch for epoch in history.epochs] == [False, False, True] * 2 + [False]
    assert all("train/elbo" in epoch for epoch in history.epochs)
    lines = [record.message for record in caplog.records if record.message.startswith("epoch ")]
    assert ["val" in line for line in lines] == [False, False, True] * 2 + [False]
    assert saved == [False, False, *[True] * 5]
    # The plateau schedule steps only after a validation: there are two, and the second is no better.
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(cfg.optimizer.lr / 2)


def test_a_new_best_checkpoint_is_written_once(tmp_path):
    """A new best epoch is one file with two names; the next ``last`` does not change ``best``."""
    places = (f"run_dir={tmp_path}", "~logger", "~callbacks.dashboard", "~callbacks.figures", "~callbacks.progress_bar")
    cfg = composed(*SMALL, *places, "trainer.max_epochs=4", "trainer.limit_train_batches=4")
    datamodule, model = built(*SMALL)
    best, last = (tmp_path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    seen = []

    class Listen(Checkpoint):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 3:  # the last epoch is no better
                trainer.optimizers[0].param_groups[0]["lr"] = 10.0

        def on_train_epoch_end(self, trainer, pl_module):
            held = {path: torch.load(path, weights_only=True) for path in (best, last)}
            assert held[last]["epoch"] == trainer.current_epoch
            for name, weights in pl_module.state_dict().items():
                assert torch.equal(weights, held[last]["state_dict"][name])
            seen.append((held[best]["epoch"], best.samefile(last)))

    trainer = build.build_trainer(cfg)
    trainer.callbacks.append(Listen())
    trainer.fit(model, datamodule)
    # In the first epoch the state of the ``last`` callback differs between the two.
    assert seen == [(0, False), (1, True), (2, True), (2, False)]


def test_a_run_with_a_step_limit_can_be_resumed(tmp_path):
    """Lightning's own limit ends it at once, without a validation: https://github.com/Lightning-AI/pytorch-lightning/issues/19617"""

    def trained_for(max_steps: int, start: str | None) -> L.Trainer:
        places = (
            f"run_dir={tmp_path}",
            "seed=0",
            "~logger",
            "~callbacks.dashboard",
            "~callbacks.figures",
            "~callbacks.progress_bar",
        )
        limits = ("trainer.limit_train_batches=4", "trainer.max_epochs=5", f"trainer.max_steps={max_steps}")
        cfg = composed(*SMALL, "data.batch_size=50", *places, *limits)
        trainer = build.build_trainer(cfg)
        datamodule, model = built(*SMALL, "data.batch_size=50")
        trainer.fit(model, datamodule, ckpt_path=start, weights_only=True)
        return trainer

    last = str(tmp_path / "checkpoints" / "last.ckpt")
    for max_steps, start in ((4, None), (6, last), (-1, last)):  # an epoch, one and a half, all epochs
        trainer = trained_for(max_steps, start)
        assert trainer.global_step == (max_steps if max_steps > 0 else 6 + 3 * 4)
        assert math.isfinite(trainer.callback_metrics["val/elbo"])
    assert trained_for(3, last).global_step == 18  # reached before


def test_the_time_left_is_shown_until_the_last_epoch():
    """It depends on the length of the whole training, not on the time left."""
    assert [_time_left(done, 3, [60.0] * done) for done in (1, 2, 3)] == [", about 2 min left", ", about 60 s left", ""]
    assert _time_left(1, 2, [80.0]) == ", about 80 s left"
    assert [_time_left(1, epochs, [40.0]) for epochs in (2, -1, None)] == ["", "", ""]  # short, or without a limit


@pytest.mark.parametrize(("typed", "shown"), [((), False), (("loss=capacity", "model.kl_weight=1"), True)])
def test_a_loss_that_is_not_the_elbo_is_in_the_line_of_the_epoch(typed, shown, tmp_path, caplog):
    datamodule, model = built(*SMALL, *typed)
    history, line = History(), EpochLine()
    best = BestCheckpoint("val/loss", dirpath=str(tmp_path), save_on_train_epoch_end=True)
    with caplog.at_level("INFO"):
        fit(model, datamodule, history, best, line, epochs=1, limit_train_batches=3)
    (said,) = [record.message for record in caplog.records if record.message.startswith("epoch 1/1 (best)  val")]
    assert (f"  loss {history.epochs[0]['val/loss']:.2f}  " in said) is shown


def test_the_kept_epoch_is_the_one_whose_weights_were_saved(tmp_path):
    """An epoch without validation has none of the metrics of the validation before it."""
    datamodule, model = built(*SMALL)
    best = BestCheckpoint("train/loss", dirpath=str(tmp_path), save_on_train_epoch_end=True)
    history = History()
    trainer = fit(model, datamodule, history, best, epochs=3, limit_train_batches=3, check_val_every_n_epoch=2)
    assert best.best_epoch == int(min(history.epochs, key=lambda epoch: epoch["train/loss"])["epoch"]) == 2
    assert [epoch.get("kept") for epoch in epochs_of(trainer)] == [None, None, 1.0]
    assert best.best_metrics == {}
    assert mark_kept(history.epochs, None) == history.epochs


def test_a_logger_that_cannot_begin_is_one_line():
    class Account(DummyLogger):
        @property
        def experiment(self):
            raise RuntimeError("No API key\nconfigured")

    with pytest.raises(UserError, match="Account cannot begin: No API key configured"):
        build.begin_logging(L.Trainer(accelerator="cpu", logger=Account(), enable_checkpointing=False))


def test_the_csv_logger_takes_metrics(tmp_path):
    (logger,) = build.build_trainer(composed(*SMALL, "logger=csv", f"run_dir={tmp_path}")).loggers
    datamodule, model = built(*SMALL)
    fit(model, datamodule, Dashboard(), logger=logger, limit_train_batches=2)
    header = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert {"step/loss", "val/elbo", "train/elbo"} <= set(header.split(","))


def test_the_summary_counts_parameters_and_no_flops():
    _, model = built(*SMALL)
    table = summary_table(model)
    assert "FLOPs" not in table
    assert table.endswith(f"| | total | {sum(p.numel() for p in model.parameters()):,} |")
