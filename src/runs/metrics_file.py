"""Read and write ``metrics.json`` of a run: checked, atomic, and by one process at a time."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from src.system.contents import BEFORE, METRICS, METRICS_LOCK
from src.system.errors import UserError, one_line
from src.system.files import whole_file
from src.system.locks import lock


def read_record(path: Path) -> dict[str, Any]:
    """Read a run's ``metrics.json``; return an empty record if there is none.

    Raises:
        UserError: the file is damaged, or is not the record of a run.
    """
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): delete it and evaluate again") from error
    if not _is_record(record):
        raise UserError(f"{path} is not the record of a run: delete it and evaluate again")
    return record


def readable_record(path: Path) -> dict[str, Any]:
    """Read a record as :func:`read_record`, but return an empty one if it is damaged."""
    try:
        return read_record(path)
    except UserError:
        return {}


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record atomically, with every list of numbers on one line."""
    text = json.dumps(record, indent=2)
    # A string cannot match: its line breaks are escaped.
    text = re.sub(r"\[\n[-+\d\s.,eE]*\]", lambda numbers: " ".join(numbers[0].split()), text)
    with whole_file(path) as file:
        file.write_text(text + "\n")


def put_aside(run: Path) -> None:
    """Rename ``metrics.json`` to ``metrics.before.json``, because its weights are about to be replaced.

    Evaluations of a training that did not finish are merged into the record of its earlier end.
    """
    metrics, before = run / METRICS, run / BEFORE
    if not metrics.exists():
        return
    with locked(run):
        current, earlier = readable_record(metrics), readable_record(before)
        if "steps" in current or not earlier:
            metrics.replace(before)
            return
        evaluation = _merged(earlier.get("evaluation", {}), current.get("evaluation", {}))
        write_json(before, earlier | {"evaluation": evaluation})
        metrics.unlink()


def write_record(run: Path, record: Mapping[str, Any], checkpoints: Mapping[str, str]) -> None:
    """Write the result of a training, and keep the earlier evaluations of the same weights.

    Args:
        run: the run's folder.
        record: the record without evaluations.
        checkpoints: hash of each checkpoint by file name.
    """
    with locked(run):
        found = [readable_record(run / name).get("evaluation", {}) for name in (BEFORE, METRICS)]
        kept = {
            split: same
            for split, parts in _merged(*found).items()
            if (same := {name: part for name, part in parts.items() if part.get("checkpoint") in checkpoints.values()})
        }
        evaluation = {"evaluation": kept} if kept else {}
        write_json(run / METRICS, {**record, "checkpoints": dict(checkpoints), **evaluation})


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes from writing ``metrics.json`` while it is read, changed and written."""
    with lock(run, METRICS_LOCK, patience=None) or contextlib.nullcontext():
        yield


def _merged(*evaluations: dict[str, Any]) -> dict[str, Any]:
    """Merge evaluations by split; later ones take precedence."""
    merged: dict[str, Any] = {}
    for split, parts in (item for evaluation in evaluations for item in evaluation.items()):
        merged[split] = merged.get(split, {}) | parts
    return merged


def _is_record(record: Any) -> bool:
    """Return whether a record has mappings in the right places and a count of steps that TensorBoard accepts."""
    if not isinstance(record, dict):
        return False
    evaluation = record.get("evaluation", {})
    mappings = [evaluation, *(record.get(key, {}) for key in ("data", "checkpoints", "names"))]
    if all(isinstance(mapping, dict) for mapping in mappings):
        mappings = list(evaluation.values())
        mappings += [part for split in mappings if isinstance(split, dict) for part in split.values()]
    steps = record.get("steps", 0)
    count = isinstance(steps, int) and not isinstance(steps, bool) and 0 <= steps < 2**63
    return count and all(isinstance(mapping, dict) for mapping in mappings)
