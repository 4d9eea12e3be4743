"""Find why a process failed, in one line of its output."""

import re
import signal

from src.system.explain import LESS_MEMORY

LINES = 2000  # lines at the end of the output that are searched
RANK = re.compile(r"^\[rank\d+\]: ?")  # torch puts it before each line of a DDP process
TRACEBACK = "Traceback (most recent call last):"
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(: .*)?")
# Lines that accompany the error which ends a process, from Hydra, from threads and from finalizers.
ASIDE = ("Set the environment variable HYDRA_FULL_ERROR=1", "Error executing job with overrides")
BESIDE = ("Exception in thread", "Exception ignored in")


def reason(status: int, output: str) -> str:
    """Return why a process failed.

    That is its ``error:`` line, else the first line of the exception that ended it, else the last line it printed.

    Args:
        status: its exit status, negative for a signal.
        output: its output.
    """
    if status < 0:
        known = {number.value: number.name for number in signal.Signals}
        name = known.get(-status, f"signal {-status}")
        full = f" (by the system, if memory was full: {LESS_MEMORY['train']})" if name == "SIGKILL" else ""
        return f"killed by {name}{full}"
    lines = [RANK.sub("", line).rstrip() for line in output.splitlines()[-LINES:]]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    printed = [line.strip() for line in lines if line.strip() and not line.startswith(ASIDE)]
    return (errors or _raised(lines) or printed or [f"exit status {status}"])[-1]


def _raised(lines: list[str]) -> list[str]:
    """Return the first line of each exception with a traceback, except those that did not end the process."""
    found = []
    for number, line in enumerate(lines):
        if line != TRACEBACK or (number and lines[number - 1].startswith(BESIDE)):
            continue
        own = next((after for after in lines[number + 1 :] if after and not after[0].isspace()), "")
        if EXCEPTION.fullmatch(own):
            found.append(own)
    return found
