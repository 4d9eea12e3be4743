"""The parts of the benchmark: what each needs, where its figures go, and how they read."""

import contextlib
import csv
import os
import pickle
import platform
import re
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from src.benchmark.decoding import decoding
from src.benchmark.epochs import epochs
from src.benchmark.evaluation import evaluation, memory
from src.benchmark.loops import WARM
from src.benchmark.measurement import Measurement
from src.benchmark.settings import composed
from src.benchmark.speed import speed_figure
from src.benchmark.standin import data_overrides
from src.benchmark.startup import startup
from src.benchmark.steps import Steps, matmul_peak, measure
from src.system.errors import UserError
from src.system.files import whole_file
from src.system.machine import multiplies_bfloat16, processors

NAMES = {  # of the loops, in the order of the table
    "tutorial": "tutorial",
    "eager": "bare eager",
    "compiled": "bare compiled",
    "graph": "bare CUDA graph",
    "ours": "ours",
}


class Benchmark:
    """What is measured, and the folder that the figures go to: ``<part>.csv``, ``<part>.md``, ``steps.png``.

    Args:
        settings: ``conf/benchmark.yaml``, resolved and :func:`~src.benchmark.settings.checked`.

    Raises:
        UserError: there is no such device.
        OSError: the folder cannot be written to.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        if settings["device"] == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: no GPU is to be seen on this machine")
        self.parts = settings["parts"]
        self.folder = Path(settings["folder"])
        self.folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=self.folder).close()  # now, not when all is measured
        self._settings = settings
        cuda = settings["device"] != "cpu" and torch.cuda.is_available()
        self._device = "cuda" if cuda else "cpu"
        self._overrides = [*(["trainer=gpu"] if cuda else []), *settings["overrides"]]

    @property
    def conditions(self) -> str:
        """The processor, the GPU, torch, and the overrides of the trainings, in one line."""
        cpuinfo = Path("/proc/cpuinfo")
        found = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
        name = found.group(1) if found else platform.processor()
        bf16 = "with" if multiplies_bfloat16() else "without"
        gpu = torch.cuda.get_device_name() if self._device == "cuda" else "no GPU"
        cpu = f"{name} ({bf16} bfloat16), {processors()} processors, torch on {torch.get_num_threads()}"
        overrides = f"; trainings with {' '.join(self._overrides)}" if self._overrides else ""
        return f"{cpu}; {gpu}; torch {torch.__version__}{overrides}"

    def measure(self, part: str) -> str:
        """Measure one part and write its files; returns its table."""
        if part == "steps":
            return self._steps()
        options = self._settings[part]
        root = Path(self._settings["data_dir"])
        measured: dict[str, Callable[[], list[Measurement]]] = {
            "startup": lambda: _apart(startup, options["repetitions"], self._overrides),
            "decoding": lambda: _apart(
                decoding, _folder(root / "chest_xray"), _folder(root / "chest_xray_fullres"), options["repetitions"]
            ),
            "evaluation": lambda: [
                *_apart(evaluation, options["samples"], self._device),
                *_apart(memory, options["samples"], self._device),
            ],
            "epochs": lambda: _apart(epochs, options["images"], self._overrides),
        }
        return self._write(part, [measurement._asdict() for measurement in measured[part]()])

    def _steps(self) -> str:
        options = self._settings["steps"]
        peaks: dict[str, float] = {}
        measured: list[tuple[Steps, str]] = []
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            for experiment in options["experiments"]:
                data, images = self._data(experiment, Path(folder))
                steps = measure(experiment, [*self._overrides, *data], options["rounds"], options["seconds"])
                measured.append((steps, images))
                peak = matmul_peak(steps.precision, self._device)  # of all that were measured, the largest counts
                peaks[steps.precision] = max(peak, peaks.get(steps.precision, 0))
                rows = [steps.row(peaks[steps.precision]) | {"images": images} for steps, images in measured]
                table = self._write("steps", rows)  # what is measured is kept, whatever becomes of the next one
                with whole_file(self.folder / "steps.png") as file:
                    speed_figure(rows, self.conditions).savefig(file, format="png", dpi=150)
        return table

    def _data(self, experiment: str, folder: Path) -> tuple[list[str], str]:
        name = composed(f"experiment={experiment}", *self._overrides).data.name
        return data_overrides(name, Path(self._settings["data_dir"]), folder)

    def _write(self, part: str, rows: Sequence[Mapping[str, Any]]) -> str:
        table = steps_table(rows) if part == "steps" else figures_table(rows)
        with whole_file(self.folder / f"{part}.csv") as file, file.open("w", newline="") as text:
            writer = csv.DictWriter(text, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        with whole_file(self.folder / f"{part}.md") as file:
            file.write_text(f"{self.conditions}\n\n{table}\n")
        return table


def _apart(part: Callable[..., Iterator[Measurement]], *values: Any) -> list[Measurement]:
    """Measure in a new process, which shares no memory with what was measured before.

    Raises:
        UserError: the part failed, or its process was killed.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        order, answer, said = (Path(name) / file for file in ("order", "answer", "said"))
        order.write_bytes(pickle.dumps((part, values)))
        with said.open("w") as output:
            process = WARM.start("src.benchmark.apart", [str(order), str(answer)], os.environ, output)
        try:
            status = process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)  # it ends what it started itself
            process.wait()
            raise
        if not answer.exists():
            lines = said.read_text(errors="replace").strip().splitlines()
            why = "it was killed, for want of memory perhaps" if status < 0 or not lines else lines[-1]
            raise UserError(f"the part {part.__name__} has failed: {why}")
        measured = pickle.loads(answer.read_bytes())
    if isinstance(measured, Exception):
        raise measured
    return measured


def _folder(path: Path) -> Path | None:
    return path if path.is_dir() else None


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table that reads on a terminal and in a README."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines = [[name.ljust(width) for name, width in widths.items()], ["-" * width for width in widths.values()]]
    lines += [[row[name].ljust(width) for name, width in widths.items()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def steps_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Ratios first, with their spread over the rounds; then speed, memory, and the share of the machine's peak."""
    loops = [loop for loop in NAMES if f"{loop} images/s" in rows[0]]

    def cells(row: Mapping[str, Any]) -> dict[str, str]:
        def ratio(key: str) -> str:
            return f"{row[key]:.2f} ({row[f'{key} least']:.2f}–{row[f'{key} most']:.2f})"

        speeds = " / ".join(f"{row[f'{loop} images/s']:,.0f}" for loop in loops)
        memory = " / ".join(f"{row[f'{loop} peak MiB']:,.0f}" for loop in loops)
        return {
            "experiment": row["experiment"],
            **{f"ours / {NAMES[loop]}": ratio(f"ours/{loop}") for loop in loops[:-1]},
            f"images/s: {' / '.join(loops)}": speeds,
            "ms a step: ours": f"{row['ours ms/step']:,.1f}",
            f"peak MiB: {' / '.join(loops)}": memory,
            "GFLOP/s: ours (of matmul peak)": f"{row['GFLOP/s']:,.0f} ({row['of peak']:.0%})",
            "precision": row["precision"],
            "bare": row["bare"],
            "images": row["images"],
        }

    return markdown([cells(row) for row in rows])


def figures_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was measured, and how much."""

    def value(row: Mapping[str, Any]) -> str:
        number = row["value"]
        return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"

    return markdown([{"measured": row["what"], "value": value(row), "unit": row["unit"]} for row in rows])
