"""Make training fast on the machine at hand: memory layout, and a trainer without profiling and idle hooks."""

from contextlib import nullcontext

import lightning as L
import torch
from lightning.pytorch.profilers import PassThroughProfiler
from omegaconf import DictConfig
from torch import nn

from src.models.base import BaseVAE
from src.system.machine import peak_process_memory

NO_CONTEXT = nullcontext()
# What Lightning calls at each step, of every callback and of the model.
STEP_HOOKS = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)
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


class NoProfiler(PassThroughProfiler):
    """Measure nothing, at no cost.

    Lightning's default enters a generator at every hook of every callback, about a hundred times a step. That costs
    several per cent of a step of a small network. No upstream issue was found.
    """

    def profile(self, action_name: str) -> nullcontext:
        """Return a context that does nothing."""
        return NO_CONTEXT


def skip_idle_hooks(trainer: L.Trainer, model: BaseVAE) -> None:
    """Take away the hooks of a step that do nothing: Lightning skips a hook that is None.

    It would enter a context and format the callback's name for each, some 70 times a step. Who calls such a hook of an
    instance by hand must look for None.
    """
    for owner, base in ((model, L.LightningModule), *((callback, L.Callback) for callback in trainer.callbacks)):
        for hook in STEP_HOOKS:
            if hook not in vars(owner) and getattr(type(owner), hook) is getattr(base, hook):
                setattr(owner, hook, None)


def peak_memory() -> dict[str, float]:
    """Return the peak memory in MiB so far: ``process``, and ``gpu`` if there is one."""
    peak = {"process": peak_process_memory()}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 2**20
    return {name: round(value, 1) for name, value in peak.items()}
