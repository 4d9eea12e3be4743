"""The benchmark's tables: printed, and written after each row."""

import csv
import platform
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from src.system.errors import UserError
from src.system.files import whole_file
from src.system.machine import multiplies_bfloat16, processors


class Table:
    """A table in two files of the benchmark's folder, ``<name>.csv`` and ``<name>.md``; ``str`` of it is Markdown.

    Args:
        name: of the files.
        settings: the benchmark's settings: ``folder``, ``device`` and, where there are some, ``overrides``.
        notes: what else to say of the conditions.

    Attributes:
        folder: where the files are.
        overrides: those of every measured training.
        conditions: processor, GPU, version of torch, overrides and notes, in one line.

    Raises:
        UserError: where ``device=cuda`` is asked for and there is no GPU.
        OSError: where the folder cannot be written to.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], notes: str = "") -> None:
        if settings["device"] == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: no GPU found")
        self.folder = Path(settings["folder"])
        self.folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=self.folder).close()  # fail before measuring, not after
        gpu = settings["device"] != "cpu" and torch.cuda.is_available()
        self.overrides = [*(["trainer=gpu"] if gpu else []), *settings.get("overrides", [])]
        trained = f"; trained with {' '.join(self.overrides)}" if self.overrides else ""
        self.conditions = f"{machine(gpu)}{trained}{notes}"
        self._name = name
        self._cells: list[dict[str, str]] = []
        self._rows: list[dict[str, Any]] = []

    def add(self, cells: dict[str, str], *rows: dict[str, Any]) -> None:
        """Add a row of the table, and its rows of the CSV, and write both: a later failure loses nothing."""
        self._cells.append(cells)
        self._rows += rows
        with whole_file(self.folder / f"{self._name}.csv") as file, file.open("w", newline="") as text:
            writer = csv.DictWriter(text, self._rows[0].keys())
            writer.writeheader()
            writer.writerows(self._rows)
        with whole_file(self.folder / f"{self._name}.md") as file:
            file.write_text(f"{self.conditions}\n\n{self}\n")

    def __str__(self) -> str:
        rows = self._cells
        widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
        lines = [{name: name for name in widths}, {name: "-" * width for name, width in widths.items()}, *rows]
        return "\n".join(
            f"| {' | '.join(line[name].ljust(width) for name, width in widths.items())} |" for line in lines
        )


def machine(gpu: bool) -> str:
    """Return processor, GPU and version of torch in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = found.group(1) if found else platform.processor()
    bf16 = "with" if multiplies_bfloat16() else "without"
    cpu = f"{name} ({bf16} bfloat16), {processors()} processors, {torch.get_num_threads()} threads"
    return f"{cpu}; {torch.cuda.get_device_name() if gpu else 'no GPU'}; torch {torch.__version__}"
