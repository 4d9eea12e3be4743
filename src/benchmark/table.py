"""The benchmark's table: measured row by row, and written after each row."""

import csv
import platform
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from src.benchmark.images import data_overrides
from src.benchmark.loops import CONTENDERS, OURS, present
from src.benchmark.settings import composed
from src.benchmark.steps import measure
from src.system.errors import UserError
from src.system.files import whole_file
from src.system.machine import multiplies_bfloat16, processors


class Table:
    """The measured experiments, in ``steps.csv`` and ``steps.md``; ``str`` of it is the table in Markdown.

    Args:
        settings: ``conf/benchmark.yaml``, resolved and :func:`~src.benchmark.settings.checked`.

    Raises:
        UserError: where ``device=cuda`` is asked for and there is no GPU.
        OSError: where the folder cannot be written to.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        if settings["device"] == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: no GPU found")
        self.folder = Path(settings["folder"])
        self.folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=self.folder).close()  # fail before measuring, not after
        self._settings = settings
        self._gpu = settings["device"] != "cpu" and torch.cuda.is_available()
        self._overrides = [*(["trainer=gpu"] if self._gpu else []), *settings["overrides"]]
        self._rows: list[dict[str, Any]] = []

    @property
    def conditions(self) -> str:
        """Processor, GPU, version of torch, the overrides, and how to install rivals that are missing, in one line."""
        overrides = f"; trained with {' '.join(self._overrides)}" if self._overrides else ""
        absent = [one.name for one in CONTENDERS if not present(one.package)]
        return f"{machine(self._gpu)}{overrides}" + "".join(
            f"; without {name}, which is not installed: pip install '.[peers]'" for name in absent
        )

    def measure(self, experiment: str) -> None:
        """Measure one experiment, and write the table so far: a later failure loses nothing."""
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            name = composed(f"experiment={experiment}", *self._overrides).data.name
            data, images = data_overrides(name, Path(self._settings["data_dir"]), Path(folder))
            overrides = [*self._overrides, *data]
            steps = measure(experiment, images, overrides, self._settings["rounds"], self._settings["seconds"])
        self._rows.append(steps.row())
        with whole_file(self.folder / "steps.csv") as file, file.open("w", newline="") as text:
            writer = csv.DictWriter(text, self._rows[0].keys())
            writer.writeheader()
            writer.writerows(self._rows)
        with whole_file(self.folder / "steps.md") as file:
            file.write_text(f"{self.conditions}\n\n{self}\n")

    def __str__(self) -> str:
        """Ratios first, with their spread over the rounds; then speed and memory."""
        return markdown([_cells(row) for row in self._rows])


def machine(gpu: bool) -> str:
    """Return processor, GPU and version of torch in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = found.group(1) if found else platform.processor()
    bf16 = "with" if multiplies_bfloat16() else "without"
    cpu = f"{name} ({bf16} bfloat16), {processors()} processors, {torch.get_num_threads()} threads"
    return f"{cpu}; {torch.cuda.get_device_name() if gpu else 'no GPU'}; torch {torch.__version__}"


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows of cells as a table in Markdown, its columns padded; the keys of the first row head it."""
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    lines = [{name: name for name in widths}, {name: "-" * width for name, width in widths.items()}, *rows]
    return "\n".join(f"| {' | '.join(line[name].ljust(width) for name, width in widths.items())} |" for line in lines)


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    names = [one.name for one in CONTENDERS if f"{one.name} images/s" in row]
    ratios = [key.removesuffix(" min") for key in row if key.endswith(" min")]
    return {
        "experiment": row["experiment"],
        **{
            key.replace("/", " / "): f"{row[key]:.2f} ({row[f'{key} min']:.2f}–{row[f'{key} max']:.2f})"
            for key in ratios
        },
        f"images/s: {' / '.join(names)}": " / ".join(f"{row[f'{name} images/s']:,.0f}" for name in names),
        f"ms per step: {OURS}": f"{row[f'{OURS} ms/step']:,.1f}",
        f"peak MiB: {' / '.join(names)}": " / ".join(f"{row[f'{name} peak MiB']:,.0f}" for name in names),
        "precision": row["precision"],
        "layout": row["layout"],
        "images": row["images"],
    }
