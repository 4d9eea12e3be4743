"""How a run uses its machine: precision, compilation, and a training loop that measures nothing by itself."""

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

NOTHING = nullcontext()
WIDE = 512  # channels


def on_gpu(cfg: DictConfig) -> bool:
    """Whether the trainer that a config describes will train on a GPU of this machine."""
    return cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()


def on_apples_gpu(cfg: DictConfig) -> bool:
    """Whether Lightning would take Apple's GPU for that trainer."""
    asked = cfg.trainer.accelerator
    return torch.backends.mps.is_available() and (asked == "mps" or (asked in ("gpu", "auto") and not on_gpu(cfg)))


def lay_out(model: BaseVAE, precision: str, on_gpu: bool) -> BaseVAE:
    """The model, its convolutions' weights laid out as they are multiplied fastest; values and shapes stay the same.

    A pixel's channels side by side, ``channels_last``; but float32 on a CPU, from ``WIDE`` channels to as many, is
    faster with planes that lie whole (forward and backward 3x3: by 5 to 10 % for 512 channels, 15 to 20 % for 1,024).
    """
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    wide = any(min(c.in_channels, c.out_channels) >= WIDE for c in convolutions)
    planes = wide and str(precision) in ("32", "32-true") and not on_gpu
    for body in (model.encoder, model.decoder):
        body.to(memory_format=torch.contiguous_format if planes else torch.channels_last)
    return model


def compile_networks(model: BaseVAE, cfg: DictConfig) -> None:
    """Compile encoder and decoder where ``compile`` says so: true, false, or auto, which compiles on GPUs.

    In training only: evaluation and dashboards bring many batch sizes, and each would be compiled anew. The config is
    told what auto was, for the record. Compiled dropout draws other masks.

    Raises:
        UserError: there is no such choice, or no compiler.
    """
    if cfg.compile not in (True, False, "auto"):
        raise UserError(f"compile={cfg.compile}: choose true, false or auto")
    program = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as torch looks for it
    compiler, triton = shutil.which(program) is not None, importlib.util.find_spec("triton") is not None
    if cfg.compile == "auto":
        cfg.compile = compiler and triton and on_gpu(cfg)
    if cfg.compile and not compiler:
        raise UserError(f"compile=true needs a C++ compiler, and there is no {program}: install one, or set $CXX")
    if cfg.compile and on_gpu(cfg) and not triton:
        raise UserError("compile=true needs Triton on a GPU: pip install triton, or set compile=false")
    for body in (model.encoder, model.decoder) if cfg.compile else ():
        # A partial, which a copy of the model copies too: a closure would leave the copy with this body's weights.
        body.forward = partial(_compiled_in_training, body, torch.compile(type(body).forward))


def _compiled_in_training(body: nn.Module, compiled: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> Tensor:
    return compiled(body, x) if body.training else type(body).forward(body, x)


class NoProfiler(PassThroughProfiler):
    """Measures nothing, at no cost.

    Lightning's own enters a generator at every hook of every callback, some hundred times a step: several per cent of
    a step of a small network.
    """

    def profile(self, action_name: str) -> nullcontext:
        """A context that does nothing."""
        return NOTHING


def peak_memory() -> dict[str, float]:
    """Return the largest memory use so far in MiB: ``process``, and ``gpu`` where there is one."""
    peak = {"process": peak_process_memory()}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 2**20
    return {name: round(value, 1) for name, value in peak.items()}
