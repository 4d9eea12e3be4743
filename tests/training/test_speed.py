"""Test that layouts, skipped hooks, precision, allocator and decoding change no result."""

import copy
import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import SimpleProfiler
from PIL import Image
from torchvision.transforms import ToTensor

from src.data.picture import decode
from src.models.objectives import elbo_terms
from src.runs import build, folder
from src.system.errors import UserError
from src.system.machine import hide_missing_gpus, keep_pages, peak_process_memory
from src.training import acceleration
from src.training.guard import NonFiniteGuard
from src.training.optimizers import lay_out_state
from tests.helpers import MODELS, ROOT, SMALL, built, cli, composed, examples, fit


def batch_of(model_name: str):
    size = {"conv_dropout": 32, "lstm": 28}.get(model_name, 16)
    datamodule, model = built(f"model={model_name}", f"data.image_size={size}", "model.latent_dim=4")
    return model, examples(datamodule, "train", 16)


def loss_and_gradients(model, x):
    """Return the mean negative ELBO and all gradients, with the same noise at each call."""
    model.zero_grad()
    torch.manual_seed(1)
    terms = elbo_terms(x, model.infer(x))
    loss = (terms.distortion + terms.rate).mean()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=0)
    whole = torch.stack([gradient.norm() for gradient in one[1].values()]).norm()
    for name, gradient in one[1].items():  # the gradient of a bias before batch norm is rounding error only
        assert (gradient - other[1][name]).norm() < 3e-2 * gradient.norm() + 1e-5 * whole, name


def kernels_of(model):
    return [w for w in model.decoder.parameters() if w.dim() == 4 and w.shape[1] > 1 and w.shape[2] > 1]


@pytest.mark.parametrize("name", MODELS)
def test_the_memory_layout_changes_no_result(name):
    model, x = batch_of(name)
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    acceleration.lay_out(model, "bf16-mixed", on_gpu=False)
    assert bool(kernels_of(model)) == any(isinstance(part, torch.nn.ConvTranspose2d) for part in model.modules())
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels_of(model))
    assert_same(loss_and_gradients(plain, x), loss_and_gradients(model, x))


def test_fused_steps_are_the_plain_ones():
    plain, x = batch_of("conv_tiny")
    fused = copy.deepcopy(plain)
    optimizers = [torch.optim.Adam(plain.parameters()), torch.optim.Adam(fused.parameters(), fused=True)]
    for _ in range(5):
        loss_and_gradients(plain, x)
        for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
            other.grad = one.grad.clone()  # equal ones: Adam turns rounding errors into whole steps
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)  # a step is about 1e-3


def test_batches_hold_the_images_that_a_tutorial_reads():
    datamodule, _ = built("data.image_size=16")
    batch = next(iter(datamodule.train_dataloader()))
    x = datamodule.on_after_batch_transfer(batch, 0).x
    images = {ToTensor()(image.permute(1, 2, 0).numpy()).numpy().tobytes() for image in datamodule.pool.images}
    assert x.shape == (datamodule.batch_size, 1, 16, 16)
    assert all(image.numpy().tobytes() in images for image in x)


def test_wide_float32_convolutions_on_a_cpu_keep_whole_planes():
    for name in MODELS:
        kernels = kernels_of(batch_of(name)[0])  # built for float32 on a CPU
        layout = torch.contiguous_format if name == "conv_wide" else torch.channels_last
        assert all(w.is_contiguous(memory_format=layout) for w in kernels), name
    wide = batch_of("conv_wide")[0]
    for precision, on_gpu in (("bf16-mixed", False), ("32-true", True)):
        kernels = kernels_of(acceleration.lay_out(wide, precision, on_gpu))
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_precision_is_bfloat16_where_the_processor_multiplies_it(native, precision, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "multiplies_bfloat16", lambda: native)
    cfg = composed("experiment=chest_xray_conv_deep")
    assert cfg.trainer.precision == "auto"
    build.fill_precision(cfg)
    assert cfg.trainer.precision == precision
    asked = composed("experiment=chest_xray_conv_deep", "trainer.precision=16-mixed")
    with pytest.raises(UserError, match="trainer.precision=16-mixed is for GPUs"):  # Lightning would use bfloat16
        build.fill_precision(asked)
    # A resume keeps the precision of the run, whatever this processor multiplies.
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("trainer: {precision: bf16-mixed}\n")
    resumed = composed("experiment=chest_xray_conv_deep", "ckpt_path=last")
    build.fill_precision(resumed, folder.RunFolder(tmp_path))
    assert resumed.trainer.precision == "bf16-mixed"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_kept_pages_are_not_faulted_in_again():
    def faults(how: str) -> int:
        return int(cli(how, module="tests.faults").stdout)

    if not keep_pages():
        pytest.skip("this C library has no mallopt")
    assert faults("keep") * 20 < faults("default")


def test_the_memory_of_a_process_is_not_that_of_its_parent():
    ballast = bytearray(300 * 2**20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    call = [sys.executable, "-c", "from src.system.machine import peak_process_memory; print(peak_process_memory())"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) < 100 < peak_process_memory()


def test_nothing_is_profiled_unless_asked_for():
    profiler = acceleration.NoProfiler()
    assert profiler.profile("a") is profiler.profile("b")
    with profiler.profile("a"):
        pass
    assert isinstance(build.build_trainer(trained()).profiler, acceleration.NoProfiler)
    assert isinstance(build.build_trainer(trained("+trainer.profiler=simple")).profiler, SimpleProfiler)


def trained(*overrides: str):
    """Compose a config as ``src.train`` sees it, without callbacks and loggers."""
    cfg = composed(*overrides, "run_dir=unused")
    cfg.callbacks, cfg.logger = {}, {}
    return cfg


def smooth_picture(path: Path, size: tuple[int, int], channels: int) -> Path:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 12, channels), dtype=np.uint8)
    Image.fromarray(coarse.squeeze()).resize(size, Image.Resampling.BICUBIC).save(path, "jpeg", quality=95)
    return path


def test_large_jpegs_decoded_at_a_fraction_of_their_size_differ_by_less_than_a_grey_level(tmp_path):
    path = smooth_picture(tmp_path / "large.jpeg", (1600, 1200), 1)
    pixels = decode(path, 128, 1).pixels
    with Image.open(path) as file:
        expected = np.asarray(file.resize((128, 128), Image.Resampling.BILINEAR)).astype(int)
    difference = np.abs(pixels[0].astype(int) - expected)
    assert difference.mean() < 0.75  # grey levels of 255
    assert difference.max() <= 8


def test_a_colour_jpeg_read_as_grey_is_its_luma(tmp_path):
    path = smooth_picture(tmp_path / "colour.jpeg", (64, 64), 3)
    pixels = decode(path, 64, 1).pixels
    with Image.open(path) as file:
        expected = np.asarray(file.convert("L")).astype(int)
    assert np.abs(pixels[0].astype(int) - expected).mean() < 1.0
    grey = smooth_picture(tmp_path / "grey.jpeg", (64, 64), 1)
    with Image.open(grey) as file:
        assert np.array_equal(decode(grey, 64, 1).pixels[0], np.asarray(file))


def test_idle_hooks_are_skipped_and_the_others_called():
    class Counter(Callback):
        def __init__(self):
            self.calls = []
            self.on_after_backward = lambda *args: self.calls.append("of the instance")

        def on_train_batch_end(self, trainer, pl_module, *args):
            self.calls.append("of the class")

    class Skip(Callback):
        def setup(self, trainer, pl_module, stage):
            acceleration.skip_idle_hooks(trainer, pl_module)

    weights, calls = {}, {}
    for skip in (False, True):
        datamodule, model = built(*SMALL, "data.batch_size=600")
        counter = Counter()

        trainer = fit(model, datamodule, counter, NonFiniteGuard(), *([Skip()] if skip else []))
        weights[skip], calls[skip] = model.state_dict(), counter.calls
        idle = [c for c in trainer.callbacks if c.on_before_zero_grad is None]
        assert len(idle) == (len(trainer.callbacks) if skip else 0)
        assert all(c.on_before_backward is not None for c in trainer.callbacks if isinstance(c, NonFiniteGuard))
        assert (model.on_before_zero_grad is None) is skip
    assert calls[True] == calls[False] == 2 * ["of the instance", "of the class"]
    assert all(torch.equal(value, weights[False][name]) for name, value in weights[True].items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_where_there_is_no_gpu_no_step_opens_its_library(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning sets it
    library, opened = ctypes.CDLL, []
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **options: opened.append(args) or library(*args, **options))
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.ones(1)
    optimizer = torch.optim.Adam([weight])
    hide_missing_gpus()
    opened.clear()
    optimizer.step()
    assert not opened


def test_a_resume_lays_the_optimizer_state_out_as_the_weights_are(tmp_path):
    """A fused step reads weights and state in memory order, so the state must have the layout of the weights."""
    model, x = batch_of("conv_tiny")

    def steps(model, optimizer, count):
        for seed in range(count):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            terms = elbo_terms(x, model.infer(x))
            (terms.distortion + terms.rate).mean().backward()
            optimizer.step()

    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    steps(model, optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state.update({name: value.contiguous() for name, value in state.items()})
    resumed = copy.deepcopy(model)
    steps(model, optimizer, 3)

    optimizer = torch.optim.Adam(resumed.parameters(), fused=True)
    optimizer.load_state_dict(saved)
    lay_out_state(optimizer)
    for parameter, state in optimizer.state.items():
        assert 1 in parameter.shape or state["exp_avg"].stride() == parameter.stride()
    steps(resumed, optimizer, 3)
    for ours, theirs in zip(model.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
