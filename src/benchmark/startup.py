"""Starting: from the command to its first word, to its first training step, or to the answer to a mistake."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from src.benchmark.loops import WARM, Loop
from src.benchmark.measurement import Measurement, seconds
from src.benchmark.settings import RUN
from src.system.files import quoted
from src.system.processes import Cold, Starter

TRAIN = [sys.executable, "-m", "src.train"]
IMPORT = [sys.executable, "-c"]


def startup(repetitions: int, overrides: Sequence[str]) -> Iterator[Measurement]:
    """From the command to its first training step, and to the answer to a mistake, beside what imports take.

    The same training as a point of a sweep is forked from a process that has imported all of it.
    """
    calls = {
        "answer to a typo": [*TRAIN, "model.latnt_dim=3"],
        "answer to a bad value": [*TRAIN, "model.latent_dim=0"],
        "import torch": [*IMPORT, "import torch"],
    }
    times: dict[str, list[float]] = {}
    _first_step(WARM, overrides)  # which starts the warm process
    for _ in range(repetitions):
        for what, call in calls.items():
            times.setdefault(what, []).append(
                seconds(lambda call=call: subprocess.run(call, capture_output=True, check=False))
            )
        times.setdefault("first word of a training", []).append(_first_word())
        times.setdefault("first training step", []).append(_first_step(Cold(), overrides))
        times.setdefault("first training step of a sweep's point", []).append(_first_step(WARM, overrides))
    median = {what: statistics.median(each) for what, each in times.items()}
    for what in ("answer to a typo", "answer to a bad value"):
        yield Measurement(f"{what} / import torch", median[what] / median["import torch"], "ratio")
    for what, value in median.items():
        yield Measurement(what, value, "s")


def _first_word() -> float:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        call = [*TRAIN, *RUN["startup"], f"hydra.run.dir={quoted(Path(folder) / 'run')}"]
        began = time.perf_counter()
        with subprocess.Popen(call, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            took = time.perf_counter() - began
            process.kill()
        return took


def _first_step(starter: Starter, overrides: Sequence[str]) -> float:
    began = time.perf_counter()
    with Loop("ours", [*RUN["startup"], "test=false", *overrides], starter=starter) as loop:
        loop.run(1)
        return time.perf_counter() - began
