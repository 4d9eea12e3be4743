"""The results of a campaign: its cases, and the table that counts them."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

LONGEST = 2_000  # characters of a failed command's output to show


@dataclass
class Case:
    """One command that was tried, and the faults that were found.

    Attributes:
        row: the row of the table that counts the case, such as ``kills: training``.
        what: a description of what was done.
        command: the command line that reproduces it, in the folder that the campaign keeps.
        faults: one sentence per fault; empty if there was none.
        output: what the command printed.
    """

    row: str
    what: str
    command: str
    faults: list[str] = field(default_factory=list)
    output: str = ""

    def to_json(self) -> str:
        """Return the case as one line of JSON, to pass between processes."""
        return json.dumps(asdict(self))


def typed(words: Sequence[str], module: str = "src.train", **env: str) -> str:
    """Return a command line that can be pasted into a shell."""
    return shlex.join([*(f"{name}={value}" for name, value in env.items()), "python", "-m", module, *words])


class Table:
    """Collect cases: print each fault at once, and count."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.notes: dict[str, str] = {}

    @property
    def faults(self) -> list[Case]:
        """The cases with faults."""
        return [case for case in self.cases if case.faults]

    def add(self, case: Case) -> None:
        """Add a case, and print its faults."""
        self.cases.append(case)
        if case.faults:
            print(f"FAULT  {case.row}: {case.what}: {'; '.join(case.faults)}", flush=True)
        elif sys.stderr.isatty():
            print(f"\r{len(self.cases)} tried", end="\r", file=sys.stderr, flush=True)

    def note(self, row: str, text: str) -> None:
        """Print a remark beside a row: how its cases were run, or why there are none."""
        self.notes[row] = text

    def text(self) -> str:
        """Return the table, followed by each fault with its command and output."""
        rows = list(dict.fromkeys([*(case.row for case in self.cases), *self.notes]))
        width = max((len(row) for row in rows), default=4)
        lines = [f"{'':<{width}}  tried  fine  faults"]
        for row in rows:
            cases = [case for case in self.cases if case.row == row]
            faulty = sum(bool(case.faults) for case in cases)
            note = f"  ({self.notes[row]})" if row in self.notes else ""
            lines.append(f"{row:<{width}}  {len(cases):5}  {len(cases) - faulty:4}  {faulty:6}{note}")
        for case in self.faults:
            lines += ["", f"{case.row}: {case.what}", f"  $ {case.command}"]
            lines += [f"  fault: {fault}" for fault in case.faults]
            lines += [f"  | {line}" for line in case.output.strip()[-LONGEST:].splitlines()]
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Write the table to ``table.txt``, and every case as a line of JSON to ``cases.jsonl``."""
        (folder / "table.txt").write_text(self.text() + "\n", errors="backslashreplace")
        (folder / "cases.jsonl").write_text("".join(case.to_json() + "\n" for case in self.cases))
