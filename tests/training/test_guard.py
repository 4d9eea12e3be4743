"""Test when the guard stops a run and which setting it names, without a subprocess."""

import math
import re

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision

from src.system.errors import Diverged
from src.training.dashboard import Dashboard
from src.training.guard import NonFiniteGuard
from tests.helpers import SMALL, built, fit

BATCHES = {"limit_train_batches": 4, "limit_val_batches": 1}


class Poison(L.Callback):
    """Make one thing infinite or NaN at step 3."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            with torch.no_grad():
                if self.what == "rate":
                    pl_module.posterior_head.bias.fill_(1e30)
                elif self.what == "weight":
                    next(pl_module.decoder.parameters())[0] = math.nan
        if self.what == "gradient" and trainer.global_step == 3:
            pl_module.posterior_head.weight.register_hook(lambda gradient: gradient * math.inf)

    def on_train_batch_end(self, trainer, pl_module, *_):
        if self.what == "last" and trainer.is_last_batch:
            with torch.no_grad():
                for parameter in pl_module.parameters():
                    parameter.fill_(math.nan)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("rate", "the rate is not finite at step 3"),
        ("weight", r"decoder\.layers\.0\.weight is not finite at step 3"),
        ("gradient", r"the gradient of posterior_head\.weight is not finite at step 3"),
        ("last", r"\(and of \d+ more\) is not finite after step 20"),
    ],
)
def test_it_names_step_and_cause(what, words, tmp_path):
    datamodule, model = built(*SMALL)
    logger = TensorBoardLogger(tmp_path)
    with pytest.raises(Diverged, match=words):
        fit(model, datamodule, Poison(what), NonFiniteGuard(), Dashboard(), logger=logger)


@pytest.mark.parametrize(
    ("what", "words"), [("rate", "rate is not finite at step 3"), ("gradient", "gradient.* at step 3")]
)
def test_with_rare_readings_it_still_names_the_first_bad_step(what, words):
    """On a GPU no step waits for the guard."""
    datamodule, model = built(*SMALL)
    with pytest.raises(Diverged, match=words):
        fit(model, datamodule, Poison(what), NonFiniteGuard(read_every=7))


GAUSSIAN = ("likelihood@model.likelihood=gaussian",)
LINES = [
    # Before any step it cannot be the learning rate.
    (("model.kl_weight=1e40",), {}, "model.kl_weight=1e+40 is too high: lower it"),
    (("model.kl_weight=1e40", "optimizer.lr=1e3"), {}, "model.kl_weight=1e+40 is too high: lower it"),
    (("model.kl_weight=1e25",), {}, "model.kl_weight=1e+25 is too high: lower it"),  # its gradient overflows
    # Nor if distortion and rate keep their size while the KL weight warms up.
    (("model.kl_weight=1e30", "model.kl_warmup_steps=3"), {}, "model.kl_weight=1e+30 is too high: lower it"),
    # A learning rate that is too high for any KL weight.
    (("optimizer.lr=1e27",), {}, "optimizer.lr=1e+27 is too high: lower it, or set trainer.gradient_clip_val"),
    (("optimizer.lr=1e27", "model.kl_weight=1e6"), {}, "optimizer.lr=1e+27 is too high: lower it, or set"),
    (("optimizer.lr=1e27",), {"gradient_clip_val": 1.0}, "optimizer.lr=1e+27 is too high: lower it"),
    (("optimizer=sgd", "optimizer.lr=1e3"), {}, "optimizer.lr=1000 is too high: lower it, or set trainer"),
    # Gradient descent at a learning rate that suits other losses.
    (("optimizer=sgd", "optimizer.lr=1e-5", "model.kl_weight=1e10"), {}, "model.kl_weight=1e+10 is too high: lower it"),
    (
        ("optimizer=sgd", "optimizer.lr=1e-4", *GAUSSIAN, "model.likelihood.scale=0.0026"),
        {},
        "model.likelihood.scale=0.0026 is too small for the errors: raise it",
    ),
]


@pytest.mark.parametrize("read_every", [1, 3])
@pytest.mark.parametrize(("overrides", "options", "line"), LINES)
def test_it_names_the_setting_with_its_value(overrides, options, line, read_every):
    datamodule, model = built(*SMALL, *overrides)
    with pytest.raises(Diverged) as stopped:
        fit(model, datamodule, NonFiniteGuard(read_every), epochs=2, **BATCHES, **options)
    assert line in str(stopped.value)
    assert len(re.findall(r"(?:optimizer|model|trainer)\.\w+(?:\.\w+)?=", str(stopped.value))) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer.lr=0.3",),  # too high, and yet a result
        ("model.kl_weight=1e12",),
        (*GAUSSIAN, "model.likelihood.scale=0.0026"),
        (*GAUSSIAN, "model.likelihood.scale=1e10"),
    ],
)
def test_a_finite_run_continues(overrides):
    datamodule, model = built(*SMALL, *overrides)
    assert fit(model, datamodule, NonFiniteGuard(), **BATCHES).global_step == 4


def test_what_anomaly_detection_finds_is_one_line():
    datamodule, model = built(*SMALL)

    class Spoil(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 2:
                pl_module.loss.forward = lambda model, x, inference, terms, kl_weight: (
                    terms.elbo + 0 * (terms.rate - terms.rate).sqrt()
                )

    with pytest.raises(Diverged, match=r"the gradient is not finite at step 2 \(Function 'SqrtBackward0' returned nan"):
        fit(model, datamodule, Spoil(), NonFiniteGuard(), detect_anomaly=True, **BATCHES)


def test_a_loss_that_is_finite_and_absurd_stops_the_run_before_anything_shows_it():
    """TensorBoard's histograms end at 1e20, and a report's axes at such a point."""
    datamodule, model = built(*SMALL, "optimizer.lr=1e3")
    with pytest.raises(Diverged, match="loss of the validation split is .* at first.*optimizer.lr=1000 is too high"):
        fit(model, datamodule, NonFiniteGuard(), **BATCHES)


@pytest.mark.parametrize("split", ["val", "test"])
def test_all_metrics_of_a_split_are_checked(split):
    """With this KL weight the loss overflows and the elbo does not."""
    datamodule, model = built(*SMALL)

    class Weigh(L.Callback):
        def on_validation_start(self, trainer, pl_module):
            pl_module.kl_weight = 1e39 if split == "val" else 1.0

        def on_validation_end(self, trainer, pl_module):
            pl_module.kl_weight = 1.0

        def on_test_start(self, trainer, pl_module):
            pl_module.kl_weight = 1e39

    name = {"val": "validation", "test": "test"}[split]

    def run():
        trainer = fit(model, datamodule, Weigh(), NonFiniteGuard(), **BATCHES)
        trainer.test(model, datamodule, verbose=False)

    with pytest.raises(Diverged, match=f"the loss of the {name} split is not finite after step 4"):
        run()


def test_an_overflow_under_float16_is_left_to_the_scaler():
    """The first scales overflow: the scaler skips those steps and then trains."""
    datamodule, model = built(*SMALL)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, datamodule, NonFiniteGuard(), plugins=[precision], epochs=8, limit_val_batches=1)
    assert scaler.get_scale() < 2.0**120
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_gradients_under_float16_are_shown_unscaled():
    """Those of the scaled loss are larger by the scale; a fused optimizer would unscale them only in its step."""
    norms = {}
    for name, options in (
        ("full", {"precision": "32-true"}),
        ("half", {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))]}),
    ):
        datamodule, model = built(*SMALL)
        fit(model, datamodule, NonFiniteGuard(), **{**BATCHES, "limit_train_batches": 1}, **options)
        norms[name] = model.step_grad_norm.item()
        assert any(group.get("fused") for group in model.trainer.optimizers[0].param_groups)
    assert norms["half"] == pytest.approx(norms["full"], rel=0.05)


def test_float16_that_cannot_hold_the_gradients_is_named():
    datamodule, model = built(*SMALL, "model.kl_weight=1")
    model.posterior_head.weight.register_hook(lambda gradient: gradient * math.inf)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-8, growth_interval=10**6)
    with pytest.raises(Diverged, match="the gradient overflows at step .* trainer.precision=16-mixed cannot hold"):
        fit(model, datamodule, NonFiniteGuard(), plugins=[MixedPrecision("16-mixed", "cpu", scaler)], epochs=2)
