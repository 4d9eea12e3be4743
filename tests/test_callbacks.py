"""Guard, noise, means and figures, without a subprocess."""

import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint

from src import figures
from src.callbacks import History, NonFiniteGuard, ReproducibleNoise, Throughput
from src.errors import UserError
from src.metrics.means import ExampleMean
from tests.conftest import built


def fit(model, datamodule, *callbacks, epochs: int = 1, **options):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(model, datamodule)
    return trainer


SMALL = ("model=conv_tiny", "data=digits", "data.image_size=8")


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
    # The rate needs no noise: it can be had from one pass over the whole split.
    model.eval()
    images = datamodule.examples("val", len(datamodule.splits.val))
    posterior = model.posterior(images).base_dist
    rate = 0.5 * (posterior.loc**2 + posterior.scale**2 - 1) - posterior.scale.log()
    assert metrics["val/rate"] == pytest.approx(rate.sum(1).mean().item(), rel=1e-4)


def test_bits_per_dim_is_logged_for_binary_pixels_only():
    datamodule, model = built(*SMALL, "data.binarize=threshold")
    metrics = fit(model, datamodule, limit_train_batches=2).callback_metrics
    assert float(metrics["val/bits_per_dim"]) == pytest.approx(-float(metrics["val/elbo"]) / 64 / math.log(2), rel=1e-5)
    datamodule, model = built(*SMALL)
    assert "val/bits_per_dim" not in fit(model, datamodule, limit_train_batches=2).callback_metrics


class Poison(L.Callback):
    """Spoils one thing at step 3."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            with torch.no_grad():
                if self.what == "rate":
                    pl_module.posterior_head.bias.fill_(1e30)
                elif self.what == "weight":
                    next(pl_module.decoder.parameters())[0] = math.nan


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("rate", "the .*rate is not finite at step 3"),
        ("weight", "decoder.layers.0.weight is no longer finite at step 3"),
    ],
)
def test_guard_names_step_and_culprit(what, words):
    datamodule, model = built(*SMALL)
    with pytest.raises(UserError, match=words):
        fit(model, datamodule, Poison(what), NonFiniteGuard())


def test_guard_names_the_parameter_of_a_bad_gradient():
    datamodule, model = built(*SMALL)
    weight = model.posterior_head.weight
    weight.register_hook(lambda gradient: gradient * math.inf)

    class Measure(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            pl_module.step_terms["grad_norm"] = torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()])

    with pytest.raises(UserError, match="gradient of posterior_head.weight is not finite at step 0"):
        fit(model, datamodule, Measure(), NonFiniteGuard())


def test_guard_looks_at_the_weights_before_they_are_saved():
    datamodule, model = built(*SMALL)

    class LastStep(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.is_last_batch:
                with torch.no_grad():
                    model.posterior_head.weight[0, 0] = math.inf

    with pytest.raises(UserError, match="posterior_head.weight is no longer finite"):
        fit(model, datamodule, LastStep(), NonFiniteGuard(), limit_val_batches=0)


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
    other = Throughput()
    other.load_state_dict(throughput.state_dict())
    assert other.images_per_second == throughput.images_per_second


@pytest.mark.parametrize(("count", "rows", "columns"), [(16, 4, 8), (19, 4, 8), (3, 2, 3)])
def test_pictures_pair_originals_with_reconstructions(count, rows, columns):
    originals = torch.linspace(0, 0.4, count).view(-1, 1, 1, 1).expand(count, 1, 64, 64)
    picture = figures.pairs(originals, originals + 0.5)
    assert picture.shape == (3, rows * 66 + 2, columns * 66 + 2)
    for row in range(0, rows, 2):  # each reconstruction is below its original
        above, below = (picture[0, (row + i) * 66 + 30, 30::66] for i in (0, 1))
        torch.testing.assert_close(below, above + 0.5)
    enlarged = figures.grid(torch.rand(4, 1, 8, 8))
    assert enlarged.shape[1] > 64
    assert figures.picture(enlarged, "title").axes[0].get_title() == "title"


def test_loss_curves_show_what_was_logged():
    epochs = [{"epoch": e, "train/elbo": -10.0 + e, "val/elbo": -11.0 + e, "val/rate": 1.0} for e in range(3)]
    figure = figures.loss_curves(epochs, {"elbo": "pseudo-elbo", "distortion": "pseudo-distortion"})
    lines = {line.get_label(): line.get_ydata().tolist() for axes in figure.axes for line in axes.get_lines()}
    assert lines["−pseudo-elbo, training"] == [10, 9, 8]
    assert lines["−pseudo-elbo, validation"] == [11, 10, 9]
    assert lines["rate, validation"] == [1, 1, 1]
    assert "rate, training" not in lines
