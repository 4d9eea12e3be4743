"""Every model, experiment and likelihood composes, learns and reloads."""

import math

import lightning as L
import pytest
import torch
from hydra.errors import InstantiationException
from torch.distributions import constraints

from src.data.batches import Batch
from src.models.objectives import elbo_terms, log_weights
from src.runs import build
from src.runs.checkpoints import read_weights
from src.system.errors import UserError
from src.system.explain import explain
from tests.helpers import EXPERIMENTS, LIKELIHOODS, MODELS, ROOT, built, composed, fit
from tests.variants import VARIANTS


def digits_batch(datamodule, size: int) -> Batch:
    loader = datamodule.train_dataloader()
    return datamodule.on_after_batch_transfer(Batch(*(part[:size] for part in next(iter(loader)))), 0)


def descend(model, batch: Batch, steps: int) -> list[float]:
    """Return the loss before each of ``steps`` optimizer steps on one batch, in nats per image."""
    optimizer = model.configure_optimizers()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.training_step(batch, 0)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# A quarter of its width: the same depth and norms in a tenth of the time.
NARROW = {"conv_wide": ["model.encoder.widths=[32,64,128,256]", "model.decoder.widths=[32,64,128,256,256]"]}
# Every choice of what a model is made of, on a network that is small.
SMALL = ["model=mlp", "model.encoder.widths=[16]", "data.image_size=8"]
PARTS = {
    f"{name}={choice.stem}": [*SMALL, f"{name}@model.{name}={choice.stem}"]
    for name in ("posterior", "prior", "likelihood")
    for choice in sorted((ROOT / "conf" / name).glob("*.yaml"))
    if choice.stem not in ("point", "fitted_gaussian")  # loss=reconstruction takes them
} | {f"loss={choice.stem}": [*SMALL, f"loss={choice.stem}"] for choice in sorted((ROOT / "conf/loss").glob("*.yaml"))}
for several in ("loss=miwae", "loss=piwae"):
    PARTS[several].append("model.loss.bounds=${model.num_samples}")
EVERY = {name: [f"model={name}", *NARROW.get(name, [])] for name in MODELS} | PARTS | VARIANTS


@pytest.mark.parametrize(
    ("name", "depth", "samples"),
    [(name, 1, 1) for name in EVERY if name not in PARTS]
    + [(name, 2, 5 if name != "loss=reconstruction" else 1) for name in EVERY],
)
def test_every_model_keeps_the_contract(name, depth, samples, tmp_path):
    overrides = (*EVERY[name], f"model.depth={depth}", f"model.num_samples={samples}", "model.latent_dim=3")
    datamodule, model = built(*overrides)
    batch = digits_batch(datamodule, 8)
    optimizer = model.configure_optimizers()
    step = model.training_step(batch, 0)
    step["loss"].backward()
    assert torch.isfinite(step["loss"])
    assert step["rows"].shape == (8, sum(model.row_sizes()))
    optimizer.step()
    model.training_step(batch, 0)["loss"].backward()  # a second time: a layer that begins at zero passes none on
    silent = [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert not silent, f"no gradient reaches {silent}"

    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.ckpt")
    _, reloaded = built(*overrides, seed=99)
    reloaded.load_state_dict(read_weights(tmp_path / "weights.ckpt", reloaded))
    buffers = [buffer.clone() for buffer in model.buffers()]
    rows = [evaluated(net.eval(), batch) for net in (model, model, reloaded)]
    assert rows[0].shape == (8, sum(model.row_sizes(moments=True)))
    assert torch.equal(rows[0], rows[1])  # the same seed, the same evaluation
    torch.testing.assert_close(rows[0], rows[2])
    if model.has_elbo:
        assert_weights_have_the_mean_of_the_elbo(model, batch.x[:2])
    with torch.no_grad():
        drawn = model.generate(5)
    assert drawn.mean.shape == drawn.sample().shape == (5, *model.image_shape)
    if drawn.support.base_constraint is not constraints.real:  # a Gaussian goes beyond
        assert drawn.mean.min() >= 0
        assert drawn.mean.max() <= 1
    assert all(map(torch.equal, buffers, model.buffers())), "evaluation has changed a buffer"


@torch.no_grad()
def evaluated(model, batch: Batch) -> torch.Tensor:
    """Return the rows of a batch, with the same noise at each call."""
    torch.manual_seed(1)
    return model.validation_step(batch, 0)["rows"]


@torch.no_grad()
def assert_weights_have_the_mean_of_the_elbo(model, x: torch.Tensor, samples: int = 100) -> None:
    """Check that log w + distortion, whose mean is -rate, has it within 3 standard errors."""
    torch.manual_seed(2)
    inference = model.infer(x, samples)
    rest = log_weights(x, inference) - inference.likelihood.log_prob(x).double()
    error = rest.std(0) / samples**0.5
    assert ((rest.mean(0) + elbo_terms(x, inference).rate).abs() <= 3 * error + 1e-5).all()


@pytest.mark.parametrize("name", MODELS)
def test_depth_and_latent_dim_change_every_model(name):
    counts = {
        key: sum(p.numel() for p in built(f"model={name}", *key)[1].parameters())
        for key in (("model.depth=1",), ("model.depth=2",), ("model.depth=2", "model.latent_dim=5"))
    }
    assert len(set(counts.values())) == 3, counts


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_composes_and_builds(name):
    cfg = composed(f"experiment={name}")
    if cfg.model.start_at_mean or "start" in cfg.model.prior:  # it begins at training images, which may not be here
        cfg = composed(f"experiment={name}", "data=digits", "data.image_size=28")
    datamodule = build.build_datamodule(cfg)
    model = build.build_model(cfg, datamodule)
    assert model.decode(torch.zeros(2, cfg.model.latent_dim)).mean.shape == (2, *datamodule.image_shape)
    rates = rates_of(model, epochs=1)
    assert rates == [{"paper_vae_static": 1e-4, "paper_vamp_static": 5e-4}.get(name, 1e-3)]


def rates_of(model, epochs: int) -> list[float]:
    """Return the learning rate in each epoch of an optimizer that does not take shorter steps for small gradients."""
    made = model.configure_optimizers()
    optimizer, schedule = (made["optimizer"], made["lr_scheduler"]) if isinstance(made, dict) else (made, None)
    assert type(optimizer) in (torch.optim.Adam, torch.optim.RMSprop)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule:
            assert (schedule["interval"], schedule["frequency"]) == ("epoch", 1)
            schedule["scheduler"].step()
    return rates


def test_the_rates_of_the_plain_anchor_are_those_of_pythae():
    cfg = composed("experiment=paper_vae_static")
    model = build.build_model(cfg, build.build_datamodule(cfg))
    published = [1e-4] * 200 + [1e-4 * 10**-0.2] * 150 + [1e-4 * 10**-0.4] * 150
    assert rates_of(model, cfg.trainer.max_epochs) == pytest.approx(published, rel=1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihood_trains(likelihood):
    overrides = [
        f"likelihood@model.likelihood={likelihood}",
        "model=conv_tiny",
        "data.dequantize=auto",
        "data.image_size=8",
    ]
    if likelihood == "gaussian":
        overrides.append("model.likelihood.learned=true")
    datamodule, model = built(*overrides)
    losses = descend(model, digits_batch(datamodule, 64), 40)
    assert all(math.isfinite(loss) for loss in losses)
    first, last = losses[0], losses[-1]
    assert last < first - 0.05 * abs(first)


@pytest.mark.parametrize("likelihood", ["logistic_mixture", "gaussian_pixelwise"])  # of several maps a channel
def test_colours_are_modelled(likelihood):
    _, model = built(*SMALL, "data.channels=3", f"likelihood@model.likelihood={likelihood}")
    x = torch.randint(256, (4, 3, 8, 8)) / 255
    loss = model.loss_and_rows(x, 1.0)[0]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.generate(2).mean.shape == model.generate(2).sample().shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("likelihood", "dequantize", "words"),
    [
        ("logistic_mixture", "false", None),
        ("student", "true", None),
        ("logistic_mixture", "true", "logistic_mixture is one of grey pixels, and these are dequantized"),
        ("gaussian", "false", "gaussian is one of dequantized pixels, and these are grey"),
        ("gaussian_optimal", "true", "gaussian_optimal is one of no pixels"),
    ],
)
def test_bits_per_dimension_are_those_of_the_likelihoods_own_pixels(likelihood, dequantize, words):
    overrides = [*SMALL, f"likelihood@model.likelihood={likelihood}", f"data.dequantize={dequantize}"]
    datamodule, model = built(*overrides)
    asked = composed(*overrides, "compare_by=val/bits_per_dim", "run_dir=unused")
    if words is None:
        build.check_metrics(asked, model, datamodule)
        metrics = fit(model, datamodule, limit_train_batches=1, limit_val_batches=1).callback_metrics
        more = 8 if dequantize == "true" else 0
        bits = -float(metrics["val/elbo"]) / 64 / math.log(2) + more
        assert float(metrics["val/bits_per_dim"]) == pytest.approx(bits, rel=1e-5)
    else:
        with pytest.raises(UserError, match=words):
            build.check_metrics(asked, model, datamodule)


@pytest.mark.parametrize("name", MODELS)
def test_first_steps_do_not_spike(name):
    datamodule, model = built(*EVERY[name])
    batch = digits_batch(datamodule, 64)
    losses = descend(model, batch, 8)
    if model.likelihood.name == "bernoulli":  # a Gaussian is as far off as its scale is small
        assert losses[0] < 1.3 * batch.x[0].numel() * math.log(2), losses
    assert max(losses[1:]) < 1.1 * losses[0], losses


@pytest.mark.parametrize("act", ["relu", "gated"])
def test_first_steps_of_an_mlp_do_not_spike_on_large_bright_images(act):
    """With ordinary layers of 16,384 inputs the second loss is 1.08 and 1.7 times the first."""
    datamodule, model = built("model=mlp", f"model.encoder.act={act}", "data.image_size=128", "optimizer.lr=1e-3")
    batch = digits_batch(datamodule, 64)
    losses = descend(model, batch._replace(x=1 - 0.5 * batch.x), 4)
    assert max(losses[1:]) < 1.02 * losses[0], losses


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_five_deep_stages_train_at_once(precision):
    """ECE 175B's original 5-stage network exploded or vanished; here 3 convolutions a stage at its rate."""
    datamodule, model = built("model=conv_deep", "model.depth=3", "model.encoder.widths=[16,32,64,64,128]")
    batch = digits_batch(datamodule, 32)
    optimizer = model.configure_optimizers()
    losses, first_layer = [], []
    for _ in range(15):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model.training_step(batch, 0)["loss"]
        loss.backward()
        first_layer.append(next(model.encoder.parameters()).grad.norm().item())
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[1:]) < 1.1 * losses[0], losses
    assert losses[-1] < 0.9 * losses[0], losses
    assert min(first_layer) > 1e-3, first_layer  # 1.6e-8 in the document's network without batch norm
    assert max(first_layer) < 1e3, first_layer


def test_dark_and_bright_pixels_can_both_be_drawn():
    """ECE 175B's last batch norm and LeakyReLU before the sigmoid keep every pixel above about 0.48."""
    _, model = built("model=conv_deep")
    optimizer = torch.optim.Adam(model.decoder.parameters(), lr=1e-2)
    z = torch.randn(4, 512)
    target = torch.zeros(4, 1, 32, 32)
    target[..., 16:] = 1
    for _ in range(60):
        optimizer.zero_grad()
        (-model.decode(z).log_prob(target).mean()).backward()
        optimizer.step()
    drawn = model.decode(z).mean
    assert drawn[..., :15].max() < 0.2
    assert drawn[..., 17:].min() > 0.8


def test_heads_and_losses_are_float32_under_autocast():
    datamodule, model = built("model=conv_deep")
    batch = digits_batch(datamodule, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.encoder(batch.x).dtype == torch.bfloat16
        inference = model.infer(batch.x)
        assert inference.latents[0].posterior.base_dist.scale.dtype == torch.float32
        assert inference.likelihood.log_prob(batch.x).dtype == torch.float32


def test_loss_weighs_the_rate_and_elbo_does_not():
    datamodule, model = built("model=conv_tiny", "model.kl_weight=7")
    batch = digits_batch(datamodule, 16)
    inference = model.infer(batch.x, num_samples=3)
    assert inference.latents[0].z.shape == (3, 16, 2)
    terms = elbo_terms(batch.x, inference)
    torch.testing.assert_close(model.loss(model, batch.x, inference, terms, 7), terms.distortion + 7 * terms.rate)
    torch.testing.assert_close(terms.elbo, -terms.distortion - terms.rate)


def test_posterior_noise_is_reparameterized():
    datamodule, model = built("model=lstm")
    batch = digits_batch(datamodule, 4)
    posterior = model.posterior(batch.x)
    assert model.reparameterize(posterior, 2).requires_grad
    z = model.reparameterize(posterior, 50_000)
    torch.testing.assert_close(z.mean(0), posterior.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(z.std(0), posterior.stddev, atol=0.03, rtol=0)


def test_warm_up_follows_the_optimizer_steps():
    datamodule, model = built("model=conv_tiny", "data.image_size=8", "model.kl_weight=2", "model.kl_warmup_steps=10")
    seen = []

    class Recorder(L.Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            loss, distortion, rate = pl_module.step_terms.tolist()
            seen.append((loss - distortion) / rate)

    L.Trainer(
        accelerator="cpu", max_steps=13, callbacks=[Recorder()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
    ).fit(model, datamodule)  # fmt: skip
    assert seen == pytest.approx([2 * min(1, step / 10) for step in range(13)], abs=1e-3)


def test_validation_is_in_float32_and_training_as_it_was(monkeypatch):
    """On GPUs of Ampere and later convolutions of float32 multiply 10-bit factors unless they are told not to."""
    datamodule, model = built("model=conv_tiny", "data.image_size=8")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = {}

    class Recorder(torch.nn.Identity):
        def forward(self, x):
            seen["train" if model.training else "val"] = (
                torch.backends.cudnn.allow_tf32,
                torch.is_autocast_enabled("cpu"),
            )
            return x

    model.encoder = torch.nn.Sequential(Recorder(), model.encoder)
    L.Trainer(
        accelerator="cpu", precision="bf16-mixed", max_epochs=1, limit_train_batches=1, limit_val_batches=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0,
    ).fit(model, datamodule)  # fmt: skip
    assert seen == {"train": (True, True), "val": (False, False)}


def test_losses_of_a_validation_carry_the_final_weight():
    """With the weight of a warm-up the losses would rise, and the first epochs look best."""
    datamodule, model = built("model=conv_tiny", "data.image_size=8", "model.kl_weight=2", "model.kl_warmup_steps=1000")
    trainer = fit(model, datamodule, limit_train_batches=3)
    assert model.train().current_kl_weight == pytest.approx(2 * 3 / 1000)
    of = {name.removeprefix("val/"): float(value) for name, value in trainer.callback_metrics.items()}
    assert of["loss"] == pytest.approx(of["distortion"] + 2 * of["rate"], rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.latent_dim=0"], "latent_dim=0"),
        (["model.kl_weight=-1"], "kl_weight=-1"),
        (["model.depth=0"], "depth=0"),
        (["model.num_samples=0"], "num_samples=0"),
        (["model.latent_dim=two"], "model.latent_dim=two: give a whole number"),
        (["model.kl_weight=much"], "model.kl_weight=much: give a number"),
        (["model._target_=src.models.base.BaseVAE"], "abstract class BaseVAE"),
        (["model.likelihood._target_=src.models.likelihoods.Likelihood"], "abstract class Likelihood"),
        (["model=lstm", "data.image_size=8"], "28 and above"),
        (["model=conv_dropout", "data.image_size=28"], "32 and above"),
        (["model=mlp", "model.encoder.act=relo"], "unknown activation 'relo'"),
    ],
)
def test_impossible_models_are_refused(overrides, words):
    with pytest.raises((UserError, InstantiationException)) as caught:
        built(*overrides)
    assert words in explain(caught.value)


@pytest.mark.parametrize("accelerator", ["mps", "auto"])
def test_apples_gpu_is_refused(accelerator, monkeypatch):
    """Apple's GPU has no float64, but Lightning chooses it where there is one."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"trainer.accelerator={accelerator} is Apple's GPU here .* trainer=cpu"):
        build.build_trainer(composed(f"trainer.accelerator={accelerator}"))


def test_sgd_and_schedules_build():
    _, model = built("optimizer=sgd", "schedule=cosine")
    made = model.configure_optimizers()
    assert isinstance(made["optimizer"], torch.optim.SGD)
    assert made["lr_scheduler"]["interval"] == "epoch"
    _, model = built("schedule=plateau")
    assert model.configure_optimizers()["lr_scheduler"]["monitor"] == "val/loss"
    _, model = built("schedule=warmup")
    assert model.configure_optimizers()["lr_scheduler"]["interval"] == "step"
