"""The GPUs of this machine that a process may use, asked without importing torch."""

import logging
import os
import re
import shutil
import subprocess

from src.system.errors import one_line

log = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds: a driver that is broken may never answer
DEVICE = re.compile(r"\s*(GPU|MIG) .*\(UUID: ([^\s)]+)\)")
INSTANCE = "MIG-"  # how the name of a part of a card begins


def visible_gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES: those that it holds now, else the UUID of every card that there is.

    In place of a card that is divided (Multi-Instance GPU) stand its instances. Where the driver gives no answer, there
    are none, and a warning says so.
    """
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        return _names(_answer("nvidia-smi", "-L"))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("no GPU is used, as nvidia-smi fails (%s): mend the driver, or set trainer=cpu", one_line(error))
        return []


def _answer(*command: str) -> str:
    """What a command prints; it is left alone if it does not end, as one that waits for a driver cannot be killed."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said = process.communicate(timeout=PATIENCE)[0].decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise subprocess.SubprocessError(f"no answer within {PATIENCE:g} seconds") from error
    if process.returncode != 0:
        raise subprocess.SubprocessError(said.strip() or f"exit status {process.returncode}")
    return said


def _names(listed: str) -> list[str]:
    """The UUIDs in a list of cards, each followed by its instances."""
    names: list[str] = []
    for kind, name in (found.groups() for line in listed.splitlines() if (found := DEVICE.match(line))):
        if kind == "MIG" and names and not names[-1].startswith(INSTANCE):
            names.pop()  # the card that it is a part of
        names.append(name)
    return names
