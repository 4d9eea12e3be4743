"""Run a command that receives a signal at one of its file operations.

``python -m tests.torture.trapped 37 SIGKILL FOLDER src.train model=...``

A random time seldom falls between two file operations; this hits any of them. Opening, renaming, removing and making
files below FOLDER are counted. Number 0 sends no signal. With ``COUNT_INTO`` in the environment, the number of
operations is written to that file. ``37w`` sends the signal after the first write that follows operation 37, when the
data may not be on the disk yet.
"""

import atexit
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

COUNTED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}


class Trap:
    """Count file operations below a folder, and send the signal at one of them.

    Args:
        moment: the number of the operation, such as ``37``, or ``37w``.
        number: the signal to send.
        folder: operations below it are counted.
    """

    def __init__(self, moment: str, number: signal.Signals, folder: str) -> None:
        self.at, self.in_write = int(moment.removesuffix("w")), moment.endswith("w")
        self.number = number
        self.folder = os.path.realpath(folder)
        self.owner = os.getpid()
        self.seen = 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Handle an audit event, which Python raises before the operation."""
        if event not in COUNTED or os.getpid() != self.owner or not isinstance(args[0], str | bytes | os.PathLike):
            return
        if not os.path.abspath(os.fsdecode(args[0])).startswith(self.folder):
            return
        self.seen += 1
        if self.seen == self.at and self.in_write:
            sys.setprofile(self._on_call)
        elif self.seen == self.at:
            self.spring()

    def _on_call(self, frame: Any, event: str, function: Any) -> None:
        if event == "c_return" and getattr(function, "__name__", "") in ("write", "writelines"):
            sys.setprofile(None)
            self.spring()

    def spring(self) -> None:
        """Send the signal."""
        os.kill(self.owner, self.number)


def main() -> None:
    """Set the trap and run the command."""
    moment, name, folder, module, *words = sys.argv[1:]
    trap = Trap(moment, signal.Signals[name], folder)
    if (into := os.environ.pop("COUNT_INTO", None)) is not None:
        atexit.register(lambda: Path(into).write_text(str(trap.seen)))
    tempfile.tempdir = None  # cached by the process that this one was forked from
    sys.addaudithook(trap)
    sys.argv = [sys.argv[0], *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
