"""Compile the training step where asked, or where a short trial finds it faster: ``compile=true|false|auto``."""

import importlib.util
import logging
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lightning as L
import torch
from omegaconf import DictConfig
from torch import Tensor

from src.data.base import ImageDataModule
from src.data.batches import Batch
from src.models.base import BaseVAE
from src.system.console import duration
from src.system.errors import UserError, memory_full, one_line
from src.system.seeds import random_state, set_random_state
from src.training.acceleration import lay_out, on_gpu
from src.training.resume import StepLimit

log = logging.getLogger(__name__)
# Seconds that eager training must still take before ``auto`` tries to compile: a step becomes some 1.1 times as fast on
# a CPU and 2 to 5 times on a GPU, and compiling takes up to a minute.
LONG = {"cpu": 600.0, "cuda": 120.0}
FASTER = 1.05  # how many times as fast as the eager step the compiled one must be
ROUNDS = 7  # of the trial; each times one eager step and one compiled step
PATIENCE = 2.0  # seconds after which no further eager step is timed before the trial
WARM_UP = 4  # compiled steps before the trial; a CUDA graph is recorded in one of the first three
# Draw the random numbers of an eager step: a compiled training then differs by rounding only.
OPTIONS = {"fallback_random": True}


def check_compiler(cfg: DictConfig) -> None:
    """Check ``compile``.

    Raises:
        UserError: the choice is unknown, or ``compile=true`` and there is no compiler.
    """
    if cfg.compile not in (True, False, "auto"):
        raise UserError(f"compile={cfg.compile}: choose true, false or auto")
    if cfg.compile is True and (missing := _missing(cfg)):
        raise UserError(f"compile=true needs {missing}, or set compile=false")


def _missing(cfg: DictConfig) -> str | None:
    """Return what is needed to compile and not there; None where nothing is missing."""
    program = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # torch looks for the same
    if shutil.which(program) is None:
        return f"a C++ compiler, and there is no {program}: install one, set $CXX"
    if on_gpu(cfg) and importlib.util.find_spec("triton") is None:
        return "Triton on a GPU: pip install triton"
    return None


def prepare(
    cfg: DictConfig, trainer: L.Trainer, model: BaseVAE, datamodule: ImageDataModule, steps_done: int = 0
) -> str | None:
    """Compile the training step of a model as ``compile`` asks, and return a line that says what was done and why.

    ``auto`` is replaced by the choice, which a resumed run keeps. It compiles only where eager training would still
    take more than :data:`LONG` seconds and a trial of :data:`ROUNDS` rounds finds the compiled step faster; what is
    lost otherwise is the time of the trial. Weights, running statistics and random numbers are left as they were.

    Args:
        cfg: its ``compile`` was checked by :func:`check_compiler`.
        trainer: the trainer of the run, before it trains.
        model: the model, which is moved to the trainer's device.
        datamodule: its images have been read.
        steps_done: optimizer steps of a resumed run.

    Raises:
        UserError: ``compile=true``, and the step cannot be compiled.
    """
    if cfg.compile is False:
        return None
    asked, cfg.compile = cfg.compile, False
    if trainer.world_size > 1:  # under DDP the first step compiles again; and processes might choose differently
        if asked == "auto":
            return "compile=auto: eager, as several processes train; compile=true compiles"
        _lay_out_to_compile(model, trainer.strategy.root_device)
        cfg.compile, model.compiled = True, compiled_step()
        return "the first training step compiles, which may take a minute"
    if asked == "auto" and (missing := _missing(cfg)):
        return f"compile=auto: eager, as it needs {missing}"
    model.recipe.check(trainer, model, datamodule)
    device = trainer.strategy.root_device
    model.to(device)
    datamodule.trainer = trainer
    loader = datamodule.train_dataloader()
    with _leaving_no_trace(model), trainer.precision_plugin.forward_context():
        step = _timed_step(model, datamodule, next(iter(loader)), device)
        step()  # torch keeps the KL divergence's formula at its first use; compiled code looks it up
        left = _batches_left(trainer, len(loader), steps_done)
        if asked == "auto" and (seconds := left * _median_of(step)) < LONG[device.type]:
            return f"compile=auto: eager, as training takes about {duration(seconds)}, too short for a trial"
        _lay_out_to_compile(model, device)
        log.info("compiling the training step, which takes some seconds up to minutes ...")
        try:
            cost = _compile(model, step, _one_graph_a_step(trainer))
            if asked is True:
                said = f"compiling the training step took {duration(cost)}"
            else:
                said = _trial(model, step, cost, left)
        except UserError as error:
            if asked is True:
                raise UserError(f"{error}; set compile=false") from error
            said = f"compile=auto: eager, as {error}"
        cfg.compile = model.compiled is not None
        if not cfg.compile:
            lay_out(model, cfg.trainer.precision, on_gpu(cfg))
        return said


def compiled_step(cuda_graphs: bool = False) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a compiled :meth:`BaseVAE.loss_and_rows`: inference, terms and objective, forward and backward.

    Args:
        cuda_graphs: launch each pass at once on a GPU, where a small network waits for the launches of its kernels.
    """

    def loss_and_rows(model: BaseVAE, x: Tensor, positions: Tensor | None, *schedule: Tensor) -> tuple[Tensor, Tensor]:
        return type(model).loss_and_rows(model, x, *schedule, positions=positions)

    compiled = torch.compile(loss_and_rows, options={**OPTIONS, "triton.cudagraphs": cuda_graphs})

    def run(model: BaseVAE, x: Tensor, *schedule: float, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        numbers = (torch.full((), value, device=x.device) for value in schedule)  # else they would be compiled in
        return compiled(model, x, positions, *numbers)

    return run


def _timed_step(
    model: BaseVAE, datamodule: ImageDataModule, stored: Batch, device: torch.device
) -> Callable[[], float]:
    """Return a function that passes a batch of stored images forward and backward, and returns the seconds of it."""
    batch = datamodule.on_after_batch_transfer(Batch(*(part.to(device) for part in stored)), 0)

    def step() -> float:
        began = time.perf_counter()
        model.training_step(batch, 0)["loss"].backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        model.zero_grad()
        return seconds

    return step


def _lay_out_to_compile(model: BaseVAE, device: torch.device) -> None:
    """Lay out the weights contiguously on a GPU, where torch may compile wrong strides for ``channels_last``.

    https://github.com/pytorch/pytorch/issues/171622
    """
    if device.type == "cuda":
        for body in (model.encoder, model.decoder):
            body.to(memory_format=torch.contiguous_format)


def _one_graph_a_step(trainer: L.Trainer) -> bool:
    """Return whether the step may be a CUDA graph: the next one overwrites its gradients, so they cannot accumulate.

    https://github.com/pytorch/pytorch/issues/169545
    """
    on_gpu = trainer.strategy.root_device.type == "cuda"
    return on_gpu and trainer.world_size == 1 and trainer.accumulate_grad_batches == 1


def _batches_left(trainer: L.Trainer, batches: int, steps_done: int) -> float:
    """Return how many batches are still to be trained on, at ``batches`` an epoch, if nothing stops it early."""
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    epochs = trainer.max_epochs
    whole = [batches * epochs] if epochs is not None and epochs >= 0 else [math.inf]
    whole += [c.max_steps * trainer.accumulate_grad_batches for c in trainer.callbacks if isinstance(c, StepLimit)]
    return max(0, min(whole) - steps_done * trainer.accumulate_grad_batches)


def _median_of(step: Callable[[], float]) -> float:
    """Return the median time of up to :data:`ROUNDS` steps, of fewer where they take long."""
    seconds: list[float] = []
    while len(seconds) < ROUNDS and sum(seconds) < PATIENCE:
        seconds.append(step())
    return statistics.median(seconds)


def _compile(model: BaseVAE, step: Callable[[], float], cuda_graphs: bool) -> float:
    """Compile the step of a model, and return the seconds that this took.

    Raises:
        UserError: it cannot be compiled.
    """
    began = time.perf_counter()
    try:
        model.compiled = compiled_step(cuda_graphs)
        for _ in range(WARM_UP):
            step()
    except Exception as error:  # of any kind that a compiler raises
        model.compiled = None
        if memory_full(error):
            raise
        reason = one_line(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]  # advice for torch's developers
        raise UserError(f"the training step cannot be compiled: {reason.rstrip(' .;')}") from error
    return time.perf_counter() - began


def _trial(model: BaseVAE, step: Callable[[], float], cost: float, left: float) -> str:
    """Time compiled and eager steps in turns, keep the compiled one if it is faster, and return the reason."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    code = model.compiled
    for _ in range(ROUNDS):
        for compiled, taken in seconds.items():
            model.compiled = code if compiled else None
            taken.append(step())
    faster = statistics.median(eager / its for its, eager in zip(seconds[True], seconds[False], strict=True))
    compiled, eager = (statistics.median(seconds[which]) for which in (True, False))
    said = f"a step takes {1000 * compiled:,.1f} ms compiled and {1000 * eager:,.1f} ms eager; compiling took"
    if faster < FASTER:
        model.compiled = None
        return f"compile=auto: eager; {said} {duration(cost)}"
    model.compiled = code
    steps = f"{cost / (eager - eager / faster):,.0f}"
    whole = f" of {left:,.0f}" if math.isfinite(left) else ""
    return f"compile=auto: compiled; {said} {duration(cost)}, which {steps}{whole} batches make up"


@contextmanager
def _leaving_no_trace(model: BaseVAE) -> Iterator[None]:
    """Restore modes, running statistics and random numbers after the block."""
    modes, before = [(module, module.training) for module in model.modules()], random_state()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    if not model.training:  # a part that is in eval mode on purpose stays so
        model.train()
    try:
        yield
    finally:
        model.zero_grad()
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        set_random_state(before)
