"""Whatever watches a metric takes its better values for better: checkpoints, early stopping, schedules, searches."""

import pytest
import torch

from hydra_plugins.optuna_sweeper import OptunaSweeper, direction_of
from src.runs import build, record
from src.system.directions import mode_of, printed
from src.system.errors import UserError
from src.training.history import History
from src.training.resume import BestCheckpoint, PatientEarlyStopping
from tests.helpers import SMALL, composed, fit, multirun_config


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        *(("val/elbo", "max"), ("train/elbo", "max"), ("val/active_latents", "max")),
        *(("val/loss", "min"), ("val/distortion", "min"), ("val/rate", "min"), ("val/bits_per_dim", "min")),
    ],
)
def test_the_mode_follows_from_the_metric(metric, mode):
    other = {"min": "max", "max": "min"}[mode]
    assert mode_of(metric, None) == mode_of(metric, mode) == mode
    with pytest.raises(UserError, match=rf"x\.mode={other} would keep the worst.* give x\.mode={mode}"):
        mode_of(metric, other, "x.mode")
    assert mode_of("val/mine", other) == other
    with pytest.raises(UserError, match="say min or max"):
        mode_of("val/mine", None)


def test_people_read_the_elbo_as_papers_print_it():
    assert printed("val/elbo", -96.73, "pseudo-elbo") == "val −pseudo-elbo 96.7300"
    assert printed("val/bits_per_dim", 1.25) == "val/bits_per_dim 1.2500"


def test_a_falling_loss_is_kept_goes_on_and_lowers_no_rate(tmp_path):
    """The three watch a loss that falls at every epoch; taken for one that should rise they all would act."""
    cfg = composed(*SMALL, "schedule=plateau", "schedule.monitor=val/loss", "schedule.factory.patience=0")
    datamodule = build.build_datamodule(cfg)
    model = build.build_model(cfg, datamodule)
    best = BestCheckpoint(dirpath=tmp_path, filename="best", monitor="val/loss")
    history = History()
    trainer = fit(model, datamodule, best, PatientEarlyStopping("val/loss", patience=1), history, epochs=4)
    losses = [epoch["val/loss"] for epoch in history.epochs]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 4
    assert float(best.best_model_score) == pytest.approx(losses[-1])
    assert torch.load(best.best_model_path, weights_only=True)["epoch"] == 3
    assert trainer.optimizers[0].param_groups[0]["lr"] == cfg.optimizer.lr


def test_a_run_keeps_the_epoch_that_trained_best_and_is_compared_by_its_elbo(tmp_path):
    """Without a price on the rate the elbo gets worse while the loss gets better: that would choose too early."""
    cfg = composed(*SMALL, "model.kl_weight=0", "optimizer.lr=1e-2")
    datamodule = build.build_datamodule(cfg)
    model = build.build_model(cfg, datamodule)
    best = BestCheckpoint(dirpath=tmp_path, filename="best", monitor=cfg.callbacks.checkpoint.monitor)
    history = History()
    trainer = fit(model, datamodule, best, history, epochs=6)
    losses, elbos = ([epoch[f"val/{name}"] for epoch in history.epochs] for name in ("loss", "elbo"))
    kept = losses.index(min(losses))
    assert kept != elbos.index(max(elbos))
    assert torch.load(best.best_model_path, weights_only=True)["epoch"] == kept
    assert record.best(trainer)[cfg.compare_by] == pytest.approx(elbos[kept])
    again = BestCheckpoint(dirpath=tmp_path, filename="best", monitor="val/loss")
    again.load_state_dict(best.state_dict())
    assert again.best_metrics == best.best_metrics


def test_a_schedule_that_watches_nothing_is_made_too():
    cfg = composed(*SMALL, "schedule=plateau", "schedule.monitor=null")
    datamodule = build.build_datamodule(cfg)
    assert build.build_model(cfg, datamodule).configure_optimizers()["lr_scheduler"]["scheduler"].mode == "min"


def test_a_search_that_was_begun_the_other_way_is_not_gone_on_with(tmp_path):
    optuna = pytest.importorskip("optuna")
    optuna.create_study(study_name="sweep", storage=f"sqlite:///{tmp_path}/optuna.db", direction="maximize")
    sweeper = OptunaSweeper({})
    sweeper.config = multirun_config("seed=0,1", "compare_by=val/loss")
    with pytest.raises(UserError, match="choose another hydra.sweep.dir"):
        sweeper._run_study(tmp_path, {}, [])


def test_a_search_goes_the_way_of_its_metric():
    assert direction_of(multirun_config("seed=0,1")) == "maximize"
    assert direction_of(multirun_config("seed=0,1", "compare_by=val/bits_per_dim")) == "minimize"
