"""Starting: from the command to its first training step, or to the answer to a typo."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from src.benchmarking.loops import Loop
from src.benchmarking.measurement import Measurement, seconds
from src.benchmarking.settings import RUN


def startup(repetitions: int, overrides: Sequence[str]) -> Iterator[Measurement]:
    """From the command to its first training step, and to the answer to a typo, beside ``import torch``."""
    typo = [sys.executable, "-m", "src.train", "model.latnt_dim=3"]
    bare = [sys.executable, "-c", "import torch"]
    times: dict[str, list[float]] = {"typo": [], "torch": [], "step": []}
    for _ in range(repetitions):
        times["typo"].append(seconds(lambda: subprocess.run(typo, capture_output=True, check=False)))
        times["torch"].append(seconds(lambda: subprocess.run(bare, capture_output=True, check=True)))
        began = time.perf_counter()
        with Loop("ours", [*RUN["startup"], "test=false", *overrides]) as loop:
            loop.run(1)
            times["step"].append(time.perf_counter() - began)
    typo_s, torch_s, step_s = (statistics.median(times[name]) for name in ("typo", "torch", "step"))
    yield Measurement("answer to a typo / import torch", typo_s / torch_s, "ratio")
    yield Measurement("answer to a typo", typo_s, "s")
    yield Measurement("import torch", torch_s, "s")
    yield Measurement("first training step", step_s, "s")
