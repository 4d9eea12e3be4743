"""Test that a compiled training step is the eager one, and when ``compile=auto`` compiles."""

import copy
import functools
import shutil
import time

import pytest
import torch

from src.data.batches import Batch
from src.runs import build
from src.runs.folder import RunFolder
from src.runs.trust import saved_value
from src.system.errors import UserError
from src.training import compilation
from tests.helpers import cli, composed, examples

COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


def parts(*overrides, size=16):
    """Return config, trainer, model and data module of a small run that has not begun."""
    cfg = composed("run_dir=unused", "model.latent_dim=4", f"data.image_size={size}", *overrides)
    cfg.callbacks, cfg.logger = {}, {}
    datamodule = build.build_datamodule(cfg)
    model = build.build_model(cfg, datamodule)
    return cfg, build.build_trainer(cfg), model, datamodule


def step_of(model, x, kl_weight=1.0):
    """Return loss, rows and gradient of a training step, with the same noise at each call."""
    model.train().zero_grad()
    torch.manual_seed(1)
    statistics = [buffer.clone() for buffer in model.buffers()]
    loss, rows = (model.compiled or type(model).loss_and_rows)(model, x, kl_weight)
    loss.backward()
    for buffer, value in zip(model.buffers(), statistics, strict=True):
        buffer.data.copy_(value)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return loss.detach(), rows, gradient


def assert_equal(one, other, tolerance):
    for a, b in zip(one, other, strict=True):
        assert (a - b).norm() <= tolerance * a.norm()


SMALL = "model=mlp model.encoder.widths=[16] data.image_size=8"
VAMP = f"{SMALL} prior@model.prior=vamp model.prior.components=5"
FLOWS = f"{SMALL} prior@model.prior=real_nvp posterior@model.posterior=iaf"


@pytest.mark.parametrize(
    "words",
    [
        *("model=conv_dropout data.image_size=32", "model=conv_tiny", "model=lstm data.image_size=28", "model=mlp"),
        f"{VAMP} loss=iwae model.num_samples=3 model.loss.gradient=dreg",
        f"{FLOWS} likelihood@model.likelihood=logistic_mixture",
    ],
)
def test_the_traced_step_is_the_eager_one(words, monkeypatch):
    traced = []

    def spy(module, inputs, **options):
        traced.append(inputs)
        return module.forward

    # Generating code takes minutes on a slow machine; this backend runs the traced graph instead.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=spy))
    _, _, model, datamodule = parts(*words.split())
    x = examples(datamodule, "train", 8)
    expected, keys = step_of(model, x), list(model.state_dict())
    torch._dynamo.reset()
    model.compiled = compilation.compiled_step()
    assert_equal(expected, step_of(model, x), 1e-5)
    graphs = len(traced)
    assert graphs >= 1
    step_of(model, x, kl_weight=0.5)
    assert len(traced) == graphs  # a KL weight that changes with the step compiles nothing again
    assert_equal(expected, step_of(model, x, kl_weight=1.0), 1e-5)
    other = copy.deepcopy(model)  # a copy has its own weights
    torch.nn.init.zeros_(next(other.decoder.parameters()))
    assert step_of(other, x)[0] != expected[0]
    graphs = len(traced)
    model.eval()
    model.validation_step(Batch(x, torch.full((len(x),), -1)), 0)
    assert len(traced) == graphs  # evaluation is eager
    assert list(model.state_dict()) == keys


@COMPILER
@pytest.mark.slow
def test_the_generated_code_computes_the_eager_step_with_the_same_noise_and_leaves_no_trace():
    cfg, trainer, model, datamodule = parts("model=conv_tiny", "compile=true", size=8)
    x = examples(datamodule, "train", 16)
    expected = step_of(model, x)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    said = compilation.prepare(cfg, trainer, model, datamodule)
    assert "compiling the training step took" in said
    assert cfg.compile is True
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert_equal(expected, step_of(model, x), 1e-3)


@pytest.mark.parametrize(("slower", "chosen"), [("compiled", False), ("eager", True)])
def test_auto_takes_the_faster_step_and_says_what_the_trial_cost(slower, chosen, monkeypatch):
    cfg, trainer, model, datamodule = parts("model=conv_tiny", "compile=auto", size=8)
    eager = type(model).loss_and_rows

    def slow(*args, **options):
        time.sleep(0.05)
        return eager(*args, **options)

    monkeypatch.setitem(compilation.LONG, "cpu", 0.0)
    monkeypatch.setattr(type(model), "loss_and_rows", slow if slower == "eager" else eager)
    monkeypatch.setattr(compilation, "compiled_step", lambda graphs: slow if slower == "compiled" else eager)
    said = compilation.prepare(cfg, trainer, model, datamodule)
    assert cfg.compile is chosen
    assert (model.compiled is not None) is chosen
    assert f"compile=auto: {'compiled' if chosen else 'eager'}; a step takes" in said
    assert "compiling took" in said
    assert ("make up" in said) is chosen


def test_auto_is_eager_where_training_is_short_or_shared_or_cannot_be_compiled(monkeypatch):
    def fails(cuda_graphs):
        raise RuntimeError("no such target\nand more")

    cfg, trainer, model, datamodule = parts("model=conv_tiny", "compile=auto", size=8)
    monkeypatch.setattr(compilation, "compiled_step", fails)
    assert "too short for a trial" in compilation.prepare(cfg, trainer, model, datamodule)
    assert cfg.compile is False
    monkeypatch.setitem(compilation.LONG, "cpu", 0.0)
    cfg.compile = "auto"
    assert "cannot be compiled: no such target" in compilation.prepare(cfg, trainer, model, datamodule)
    assert (cfg.compile, model.compiled) == (False, None)
    cfg.compile = True
    with pytest.raises(UserError, match="cannot be compiled: no such target and more; set compile=false"):
        compilation.prepare(cfg, trainer, model, datamodule)
    cfg.compile = "auto"
    monkeypatch.setattr(type(trainer), "world_size", 2)
    assert "several processes" in compilation.prepare(cfg, trainer, model, datamodule)
    cfg.compile = False
    assert compilation.prepare(cfg, trainer, model, datamodule) is None


def test_what_is_left_of_a_training_counts_epochs_limits_and_steps_done():
    _, trainer, *_ = parts("trainer.max_epochs=3", size=8)
    assert compilation._batches_left(trainer, 12, 0) == 36
    assert compilation._batches_left(trainer, 12, 4) == 32
    trainer.limit_train_batches = 0.5
    assert compilation._batches_left(trainer, 12, 0) == 18
    trainer.limit_train_batches = 2
    assert compilation._batches_left(trainer, 12, 0) == 6
    trainer.fit_loop.max_epochs = -1
    assert compilation._batches_left(trainer, 12, 0) == float("inf")
    _, trainer, *_ = parts("trainer.max_epochs=-1", "trainer.max_steps=10", "trainer.accumulate_grad_batches=2")
    assert compilation._batches_left(trainer, 12, 3) == 14


def test_compile_without_a_compiler_is_refused_or_eager(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"compile=true needs a C\+\+ compiler"):
        compilation.check_compiler(composed("compile=true"))
    cfg, trainer, model, datamodule = parts("model=conv_tiny", "compile=auto", size=8)
    compilation.check_compiler(cfg)
    assert "eager, as it needs a C++ compiler" in compilation.prepare(cfg, trainer, model, datamodule)
    assert cfg.compile is False
    with pytest.raises(UserError, match="compile=maybe"):
        compilation.check_compiler(composed("compile=maybe"))


def test_auto_is_recorded_and_a_resume_keeps_what_the_run_began_with(tmp_path):
    run = tmp_path / "run"
    words = ("model=conv_tiny", "data.image_size=8", "compile=auto", f"hydra.run.dir={run}")
    done = cli(*words, "trainer.max_epochs=1")
    assert "compile=auto: eager, as training takes about" in done.stdout
    config = run / ".hydra" / "config.yaml"
    assert saved_value(config, "compile") is False
    config.write_text(config.read_text().replace("compile: false", "compile: true"))
    for path in ("last", run / "checkpoints" / "last.ckpt"):
        cfg = composed("compile=auto", f"ckpt_path={path}")
        build.fill_compile(cfg, RunFolder(run))
        assert cfg.compile is True


def test_what_cannot_be_trained_is_said_before_it_is_compiled(monkeypatch):
    cfg, trainer, model, datamodule = parts("model=conv_tiny", "compile=auto", "data.batch_size=1", size=8)
    with pytest.raises(UserError, match="data.batch_size=1: this model has batch norm"):
        compilation.prepare(cfg, trainer, model, datamodule)


def test_a_part_that_is_in_eval_mode_stays_so():
    cfg, trainer, model, datamodule = parts("model=conv_tiny", "compile=auto", "data.binarize=dynamic", size=8)
    model.encoder.eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    compilation.prepare(cfg, trainer, model, datamodule)
    assert torch.equal(random, torch.get_rng_state())  # the pixels of its batch are drawn, too
    assert (model.encoder.training, model.decoder.training) == (False, True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
