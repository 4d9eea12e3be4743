"""What is fine and what is a fault: of an output, of a file, of a folder."""

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

BOOKKEEPING = ("train.log",)  # every command that is tried in a run's folder adds its words there


def refused(done: Done) -> list[str]:
    """What is wrong with the way a command said no: fine is one ``error:`` line, the last, and nothing of a traceback.

    A status that is no failure is for the caller to judge.
    """
    if done.status is None:
        return [f"it had not ended after {done.seconds:.0f} s"]
    faults = []
    if done.status < 0:
        faults.append(f"it was killed by signal {-done.status}")
    lines = done.output.strip().splitlines()
    if "Traceback (most recent call last)" in done.output:
        faults.append(f"a traceback: {next((x for x in reversed(lines) if x.strip()), '')[:200]}")
    told = [line for line in lines if line.startswith("error: ")]
    if done.status > 0 and len(told) != 1:
        faults.append(f"{len(told)} error: lines")
    elif done.status > 0 and not lines[-1].startswith("error: "):
        faults.append(f"the error: line is not the last: {lines[-1][:200]}")
    return faults


def answered(done: Done, run: Path | None = None) -> list[str]:
    """What is wrong with the answer to nonsense: fine is a refusal, or a run whose figures are finite."""
    faults = refused(done)
    if done.status == 0 and not faults and run is not None:
        faults += infinite(run)
    return faults


def infinite(run: Path) -> list[str]:
    """The figures in a run's ``metrics.json`` that are no numbers."""
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
    """The files below ``folder`` that are cut off: checkpoints, JSON, pictures, caches."""
    faults = []
    for path in sorted(folder.rglob("*")):
        try:
            _read(path)
        except Exception as error:  # whatever a reader raises
            faults.append(f"{path.relative_to(folder)} is not whole ({' '.join(str(error).split())[:120]})")
    return faults


def _read(path: Path) -> None:
    """Read a file as those who come later will; temporary ones, whose names begin with a dot, nobody does."""
    if path.name.startswith(".") or not path.is_file() or any(part.startswith(".dec") for part in path.parts):
        return
    if path.suffix == ".ckpt":
        torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".yaml" and path.stat().st_size == 0 and path.name != "multirun.yaml":  # Hydra's, for nobody
        raise ValueError("it is empty")
    elif path.suffix == ".npy" and len(np.load(path, mmap_mode="r")) != len(np.load(path.with_name("digests.npy"))):
        raise ValueError("it has other images than digests.npy")


def litter(folder: Path, known: Collection[str] = ()) -> list[str]:
    """Temporary files that nobody has cleaned up."""
    found = [
        path for path in folder.rglob(".*") if not path.name.endswith(".lock") and path.name not in (".hydra", *known)
    ]
    found += [path for path in folder.rglob("tmp*") if path.is_file()]
    return [f"litter: {path.relative_to(folder)}" for path in sorted(found)]


def listing(folder: Path, without: Collection[str] = BOOKKEEPING) -> dict[str, str]:
    """Every file below a folder, with a hash of what is in it."""
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
    """What has become of a folder since its :func:`listing`."""
    now = listing(folder)
    return [
        *(f"{name} is gone" for name in sorted(before.keys() - now.keys())),
        *(f"{name} is new" for name in sorted(now.keys() - before.keys())),
        *(f"{name} was changed" for name in sorted(before.keys() & now.keys()) if before[name] != now[name]),
    ]
