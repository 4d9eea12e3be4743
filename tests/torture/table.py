"""What a campaign has tried and found: one case a trial, one table at the end."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

LONGEST = 2_000  # characters of a fault's output that are shown


@dataclass
class Case:
    """One trial.

    Attributes:
        row: the line of the table that counts it, such as ``kills: training``.
        what: what was done, in words.
        command: the command line that shows it, as it is typed in the folder that the campaign keeps.
        faults: what was wrong; none where it was fine.
        output: what the command printed.
    """

    row: str
    what: str
    command: str
    faults: list[str] = field(default_factory=list)
    output: str = ""

    def to_json(self) -> str:
        """One line, for a campaign in a process of its own."""
        return json.dumps(asdict(self))


def typed(words: Sequence[str], module: str = "src.train", **env: str) -> str:
    """A command line that can be pasted."""
    return shlex.join([*(f"{name}={value}" for name, value in env.items()), "python", "-m", module, *words])


class Table:
    """Takes cases as they come: tells of each fault at once, and counts."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.notes: dict[str, str] = {}

    @property
    def faults(self) -> list[Case]:
        """The cases that were not fine."""
        return [case for case in self.cases if case.faults]

    def add(self, case: Case) -> None:
        """Count a case."""
        self.cases.append(case)
        if case.faults:
            print(f"FAULT  {case.row}: {case.what}: {'; '.join(case.faults)}", flush=True)
        elif sys.stderr.isatty():
            print(f"\r{len(self.cases)} tried", end="\r", file=sys.stderr, flush=True)

    def note(self, row: str, text: str) -> None:
        """Say something beside a row: the way it was done, or why it was not."""
        self.notes[row] = text

    def text(self) -> str:
        """The table, and each fault with its command and its output."""
        rows = list(dict.fromkeys([*(case.row for case in self.cases), *self.notes]))
        width = max((len(row) for row in rows), default=4)
        lines = [f"{'':<{width}}  tried  fine  faults"]
        for row in rows:
            mine = [case for case in self.cases if case.row == row]
            bad = sum(bool(case.faults) for case in mine)
            note = f"  ({self.notes[row]})" if row in self.notes else ""
            lines.append(f"{row:<{width}}  {len(mine):5}  {len(mine) - bad:4}  {bad:6}{note}")
        for case in self.faults:
            lines += ["", f"{case.row}: {case.what}", f"  $ {case.command}"]
            lines += [f"  fault: {fault}" for fault in case.faults]
            lines += [f"  | {line}" for line in case.output.strip()[-LONGEST:].splitlines()]
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Leave what was found in the folder: the table, and every case as a line of JSON."""
        (folder / "table.txt").write_text(self.text() + "\n", errors="backslashreplace")
        (folder / "cases.jsonl").write_text("".join(case.to_json() + "\n" for case in self.cases))
