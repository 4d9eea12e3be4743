"""Make training fast on the machine at hand: memory layout, compilation, and a trainer without profiling."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig
from torch import Tensor, nn

from src.models.base import BaseVAE
from src.system.errors import UserError
from src.system.machine import peak_process_memory

NO_CONTEXT = nullcontext()
WIDE = 512  # channels


def on_gpu(cfg: DictConfig) -> bool:
    """Return whether the trainer of a config will use a CUDA GPU of this machine."""
    return cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()


def on_apples_gpu(cfg: DictConfig) -> bool:
    """Return whether Lightning would choose Apple's GPU (MPS) for the trainer of a config."""
    name = cfg.trainer.accelerator
    return torch.backends.mps.is_available() and (name == "mps" or (name in ("gpu", "auto") and not on_gpu(cfg)))


def lay_out(model: BaseVAE, precision: str, on_gpu: bool) -> BaseVAE:
    """Lay out the convolution weights for the fastest memory format and return the model; no value or shape changes.

    ``channels_last`` is fastest, except for convolutions in float32 on a CPU that have at least ``WIDE`` input and
    output channels: the contiguous format is faster there (3x3, forward and backward: 5 to 10 % at 512 channels,
    15 to 20 % at 1,024).
    """
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    wide = any(min(c.in_channels, c.out_channels) >= WIDE for c in convolutions)
    contiguous = wide and str(precision) in ("32", "32-true") and not on_gpu
    for body in (model.encoder, model.decoder):
        body.to(memory_format=torch.contiguous_format if contiguous else torch.channels_last)
    return model


def compile_networks(model: BaseVAE, cfg: DictConfig) -> None:
    """Compile encoder and decoder if ``compile`` is true, or if it is auto and the run uses a GPU.

    Only the training mode is compiled: evaluation and dashboards use many batch sizes, and each would recompile. The
    config records what auto became. Compiled dropout draws other masks.

    Raises:
        UserError: the choice is unknown, or there is no compiler.
    """
    if cfg.compile not in (True, False, "auto"):
        raise UserError(f"compile={cfg.compile}: choose true, false or auto")
    program = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # torch looks for the same
    compiler, triton = shutil.which(program) is not None, importlib.util.find_spec("triton") is not None
    if cfg.compile == "auto":
        cfg.compile = compiler and triton and on_gpu(cfg)
    if cfg.compile and not compiler:
        raise UserError(f"compile=true needs a C++ compiler, and there is no {program}: install one, or set $CXX")
    if cfg.compile and on_gpu(cfg) and not triton:
        raise UserError("compile=true needs Triton on a GPU: pip install triton, or set compile=false")
    for body in (model.encoder, model.decoder) if cfg.compile else ():
        # A deepcopy also copies a partial's arguments; a closure would keep the weights of the original.
        body.forward = partial(_compiled_in_training, body, torch.compile(type(body).forward))


def _compiled_in_training(body: nn.Module, compiled: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> Tensor:
    return compiled(body, x) if body.training else type(body).forward(body, x)


class NoProfiler(PassThroughProfiler):
    """Measure nothing, at no cost.

    Lightning's default enters a generator at every hook of every callback, about a hundred times a step. That costs
    several per cent of a step of a small network. No upstream issue was found.
    """

    def profile(self, action_name: str) -> nullcontext:
        """Return a context that does nothing."""
        return NO_CONTEXT


def peak_memory() -> dict[str, float]:
    """Return the peak memory in MiB so far: ``process``, and ``gpu`` if there is one."""
    peak = {"process": peak_process_memory()}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 2**20
    return {name: round(value, 1) for name, value in peak.items()}
