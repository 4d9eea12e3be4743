"""List the GPUs that a process may use, without importing torch."""

import logging
import os
import re
import shutil
import subprocess

from src.system.errors import one_line

log = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds; a broken driver may never answer
DEVICE = re.compile(r"\s*(GPU|MIG) .*\(UUID: ([^\s)]+)\)")
INSTANCE = "MIG-"  # prefix of the names of MIG instances


def visible_gpus() -> list[str]:
    """Return the names in CUDA_VISIBLE_DEVICES if it is set, else the UUID of every card of this machine.

    A card that is divided (Multi-Instance GPU) is replaced by its instances. If the driver does not answer, a warning
    says so and the list is empty.
    """
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        return _names(_answer("nvidia-smi", "-L"))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("no GPU is used, as nvidia-smi fails (%s): repair the driver, or set trainer=cpu", one_line(error))
        return []


def _answer(*command: str) -> str:
    """Return what a command prints; after the timeout do not wait, as a process stuck in a driver cannot be killed."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        output = process.communicate(timeout=PATIENCE)[0].decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise subprocess.SubprocessError(f"no answer within {PATIENCE:g} seconds") from error
    if process.returncode != 0:
        raise subprocess.SubprocessError(output.strip() or f"exit status {process.returncode}")
    return output


def _names(listed: str) -> list[str]:
    """Return the UUIDs in the output of ``nvidia-smi -L``, where each card is followed by its instances."""
    names: list[str] = []
    for kind, name in (found.groups() for line in listed.splitlines() if (found := DEVICE.match(line))):
        if kind == "MIG" and names and not names[-1].startswith(INSTANCE):
            names.pop()  # the card that is divided
        names.append(name)
    return names
