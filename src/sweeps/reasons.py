"""Why a process failed, in one line of what it printed."""

import re
import signal

from src.system.explain import LESS_MEMORY

LINES = 2000  # of its output, from the end, that are looked at
RANK = re.compile(r"^\[rank\d+\]: ?")  # torch puts it before each line of a DDP process
TRACEBACK = "Traceback (most recent call last):"
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(: .*)?")
# What is said beside the error that ends a process: by Hydra, by threads, and by what is taken apart after it.
ASIDE = ("Set the environment variable HYDRA_FULL_ERROR=1", "Error executing job with overrides")
BESIDE = ("Exception in thread", "Exception ignored in")


def reason(status: int, output: str) -> str:
    """Why a process failed.

    Its ``error:`` line; else the first line of the exception that ended it; else the last line that it printed.

    Args:
        status: its exit status, negative for a signal.
        output: what it printed.
    """
    if status < 0:
        known = {number.value: number.name for number in signal.Signals}
        name = known.get(-status, f"signal {-status}")
        full = f" (by the system, if memory was full: {LESS_MEMORY['train']})" if name == "SIGKILL" else ""
        return f"killed by {name}{full}"
    lines = [RANK.sub("", line).rstrip() for line in output.splitlines()[-LINES:]]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    said = [line.strip() for line in lines if line.strip() and not line.startswith(ASIDE)]
    return (told or _raised(lines) or said or [f"exit status {status}"])[-1]


def _raised(lines: list[str]) -> list[str]:
    """The first line of each exception whose traceback was printed, but for those that ended nothing."""
    found = []
    for number, line in enumerate(lines):
        if line != TRACEBACK or (number and lines[number - 1].startswith(BESIDE)):
            continue
        own = next((after for after in lines[number + 1 :] if after and not after[0].isspace()), "")
        if EXCEPTION.fullmatch(own):
            found.append(own)
    return found
