"""Find faults in outputs, files and folders. Every function returns one sentence per fault."""

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.torture.commands import Done

BOOKKEEPING = ("train.log",)  # every command in a run's folder appends to it


def refused(done: Done) -> list[str]:
    """Check how a command refused its input: with exactly one ``error:`` line, the last one, and without a traceback.

    Exit status 0 is no fault here; the caller judges it.
    """
    if done.status is None:
        return [f"it did not end within {done.seconds:.0f} s"]
    faults = []
    if done.status < 0:
        faults.append(f"it was killed by signal {-done.status}")
    lines = done.output.strip().splitlines()
    if "Traceback (most recent call last)" in done.output:
        faults.append(f"a traceback: {next((x for x in reversed(lines) if x.strip()), '')[:200]}")
    errors = [line for line in lines if line.startswith("error: ")]
    if done.status > 0 and len(errors) != 1:
        faults.append(f"{len(errors)} error: lines")
    elif done.status > 0 and not lines[-1].startswith("error: "):
        faults.append(f"the error: line is not the last: {lines[-1][:200]}")
    return faults


def answered(done: Done, run: Path | None = None) -> list[str]:
    """Check the answer to malformed input: either a refusal, or a run whose metrics are finite."""
    faults = refused(done)
    if done.status == 0 and not faults and run is not None:
        faults += infinite(run)
    return faults


def infinite(run: Path) -> list[str]:
    """Find metrics in a run's ``metrics.json`` that are infinite or not a number."""
    if not (run / "metrics.json").exists():
        return ["exit status 0 and no metrics.json"]
    try:
        metrics = json.loads((run / "metrics.json").read_text())
    except ValueError as error:
        return [f"metrics.json cannot be parsed: {error}"]
    parts = {key: metrics[key] for key in ("test", "best", "evaluation") if key in metrics}
    return [f"metrics.json: {key} is {value}" for key, value in _leaves(parts) if not _finite(value)]


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, tree


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def not_whole(folder: Path) -> list[str]:
    """Find truncated files below ``folder``: checkpoints, JSON, configs, caches."""
    faults = []
    for path in sorted(folder.rglob("*")):
        try:
            _read(path)
        except Exception as error:  # readers raise all kinds of errors
            faults.append(f"{path.relative_to(folder)} is not whole ({' '.join(str(error).split())[:120]})")
    return faults


def _read(path: Path) -> None:
    """Read a file as later commands do. They skip temporary files, whose names begin with a dot."""
    if path.name.startswith(".") or not path.is_file() or any(part.startswith(".dec") for part in path.parts):
        return
    if path.suffix == ".ckpt":
        torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif (
        path.suffix == ".yaml" and path.stat().st_size == 0 and path.name != "multirun.yaml"
    ):  # Hydra's own; nothing reads it
        raise ValueError("it is empty")
    elif path.suffix == ".npy" and len(np.load(path, mmap_mode="r")) != len(np.load(path.with_name("digests.npy"))):
        raise ValueError("it does not match digests.npy")


def litter(folder: Path, known: Collection[str] = ()) -> list[str]:
    """Find temporary files that were left behind."""
    found = [
        path for path in folder.rglob(".*") if not path.name.endswith(".lock") and path.name not in (".hydra", *known)
    ]
    found += [path for path in folder.rglob("tmp*") if path.is_file()]
    return [f"litter: {path.relative_to(folder)}" for path in sorted(found)]


def listing(folder: Path, without: Collection[str] = BOOKKEEPING) -> dict[str, str]:
    """Map every file below a folder to a hash of its content."""
    found = {}
    for where, _, names in os.walk(os.fsencode(folder)):
        for name in names:
            path = os.path.join(where, name)
            if os.fsdecode(name) not in without:
                key = os.fsdecode(os.path.relpath(path, os.fsencode(folder)))
                found[key] = _digest(path)
    return found


def _digest(path: bytes) -> str:
    if os.path.islink(path):
        return f"a link to {os.fsdecode(os.readlink(path))}"
    if not os.path.isfile(path):
        return "no file"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def changed(before: dict[str, str], folder: Path) -> list[str]:
    """Compare a folder with its earlier :func:`listing`."""
    after = listing(folder)
    return [
        *(f"{name} is gone" for name in sorted(before.keys() - after.keys())),
        *(f"{name} is new" for name in sorted(after.keys() - before.keys())),
        *(f"{name} was changed" for name in sorted(before.keys() & after.keys()) if before[name] != after[name]),
    ]
