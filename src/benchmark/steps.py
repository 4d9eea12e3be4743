"""Training steps of ``src.train`` beside the tutorials' loop and the best one written by hand, round by round."""

import itertools
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from src.benchmark.gate import Round
from src.benchmark.loops import Loop
from src.benchmark.settings import composed
from src.benchmark.written import Network
from src.runs import build
from src.runs.build import fill_precision
from src.system.console import progress
from src.system.errors import UserError

WARM_UP = 4  # steps before the rounds
MATMUL = {"cpu": 2048, "cuda": 8192}  # side of the matrices whose product is the machine's peak


class Steps(NamedTuple):
    """What was measured of one experiment; seconds of a step in each round, of each loop."""

    experiment: str
    batch_size: int
    precision: str
    seconds: dict[str, list[float]]
    peak_memory_mib: dict[str, float]
    bare: dict[str, str]  # the fastest variant of each kind of the bare loop
    flops: int  # of a step, counted as two a multiplication and addition

    def ratio(self, loop: str) -> list[float]:
        """Speed of ours over that of ``loop``, round by round."""
        return [other / ours for other, ours in zip(self.seconds[loop], self.seconds["ours"], strict=True)]

    def row(self, peak: float) -> dict[str, Any]:
        """Medians and spread, for the table; ``peak`` in FLOP/s."""
        row: dict[str, Any] = {"experiment": self.experiment, "precision": self.precision}
        for loop in (name for name in self.seconds if name != "ours"):
            ratios = self.ratio(loop)
            row |= {
                f"ours/{loop}": statistics.median(ratios),
                f"ours/{loop} least": min(ratios),
                f"ours/{loop} most": max(ratios),
            }
        for loop in self.seconds:
            step = statistics.median(self.seconds[loop])
            row |= {
                f"{loop} images/s": self.batch_size / step,
                f"{loop} ms/step": 1000 * step,
                f"{loop} peak MiB": self.peak_memory_mib[loop],
            }
        row["GFLOP/s"] = self.flops / statistics.median(self.seconds["ours"]) / 1e9
        row["of peak"] = row["GFLOP/s"] * 1e9 / peak
        return row | {"bare": "; ".join(self.bare.values()), "batch_size": self.batch_size}


def measure(experiment: str, overrides: Sequence[str], rounds: int, seconds: float) -> Steps:
    """Steps of the tutorial's loop, each kind of the bare one and ours, each in a process, in turns in each round.

    Args:
        experiment: a choice of ``experiment=``.
        overrides: more of the command line, such as ``trainer=gpu``.
        rounds: rounds; the order of the loops changes from one to the next.
        seconds: what a round of the fastest loop should last.

    Raises:
        UserError: a loop fails, or there are more rounds than an epoch has room for.
    """
    command = [f"experiment={experiment}", *overrides]
    cfg = composed(*command)
    fill_precision(cfg)
    datamodule = build.build_datamodule(cfg)
    flops = count_flops(Network(build.build_model(cfg, datamodule)), datamodule.batch_size, datamodule.image_shape)
    batches = len(datamodule.splits.train) // datamodule.batch_size
    most = (batches - WARM_UP) // (rounds + 1)  # within one epoch: what an epoch ends with is no step
    if most < 1:
        raise UserError(f"steps.rounds={rounds}: an epoch of {experiment} has {batches} batches, too few for so many")
    with Loop("bare", command) as trial:  # alone, and in a process that ends: its memory is not the loop's
        bare = trial.note
    with ExitStack() as stack:
        loops = {"tutorial": Loop("tutorial", command), **{k: Loop("bare", command, v) for k, v in bare.items()}}
        loops["ours"] = Loop("ours", command)
        for loop in loops.values():
            stack.enter_context(loop)
        warm = {name: [loop.run(1), loop.run(2)][1] for name, loop in loops.items()}
        fastest = min(round_.seconds / round_.steps for round_ in warm.values())
        steps = max(1, min(most, round(seconds / fastest)))
        for loop in loops.values():
            loop.run(steps)  # whatever is still cold
        taken: dict[str, list[Round]] = {name: [] for name in loops}
        orders = itertools.cycle(itertools.permutations(loops))  # none always follows the same one
        for _, order in zip(progress(range(rounds), experiment), orders, strict=False):
            for name in order:
                taken[name].append(loops[name].run(steps))
    return Steps(
        experiment,
        datamodule.batch_size,
        cfg.trainer.precision,
        {name: [r.seconds / r.steps for r in rounds_] for name, rounds_ in taken.items()},
        {name: rounds_[-1].peak_memory_mib for name, rounds_ in taken.items()},
        bare,
        flops,
    )


def count_flops(network: Network, batch_size: int, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of a forward and backward pass: convolutions and matrix products."""
    # Without oneDNN, whose LSTM is one operator that the counter does not know.
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        network(torch.rand(2, *image_shape)).backward()
    return counter.get_total_flops() * batch_size // 2


def matmul_peak(precision: str, device: str) -> float:
    """FLOP/s of a large matrix product in the precision of a training, on ``cpu`` or ``cuda``: the best of some."""
    kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    side = MATMUL[device]
    a = torch.randn(side, side, device=device).to(kind)
    times = []
    for _ in range(12):
        began = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * side**3 / min(times)
