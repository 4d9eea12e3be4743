"""``metrics.json`` of a run: read with care, written whole, and changed by one process at a time."""

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
    """A run's ``metrics.json``, empty where there is none.

    Raises:
        UserError: it is damaged, or from elsewhere.
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
    """As :func:`read_record`, empty where it is damaged."""
    try:
        return read_record(path)
    except UserError:
        return {}


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record: whole, or not at all; a list, such as the rates of 512 latents, on one line."""
    text = json.dumps(record, indent=2)
    # No text can look like this: its line breaks are written as \\n.
    text = re.sub(r"\[\n[-+\d\s.,eE]*\]", lambda numbers: " ".join(numbers[0].split()), text)
    with whole_file(path) as file:
        file.write_text(text + "\n")


def put_aside(run: Path) -> None:
    """Call ``metrics.json`` those of before: the weights that they are of are about to be replaced.

    What was evaluated of a training that has not ended joins the record of its earlier end.
    """
    metrics, before = run / METRICS, run / BEFORE
    if not metrics.exists():
        return
    with locked(run):
        now, earlier = readable_record(metrics), readable_record(before)
        if "steps" in now or not earlier:
            metrics.replace(before)
            return
        evaluation = _merged(earlier.get("evaluation", {}), now.get("evaluation", {}))
        write_json(before, earlier | {"evaluation": evaluation})
        metrics.unlink()


def write_record(run: Path, record: Mapping[str, Any], checkpoints: Mapping[str, str]) -> None:
    """Write what a training has ended with, and of what was evaluated before all that is of the same weights.

    Args:
        run: the run's folder.
        record: all but the evaluations.
        checkpoints: hash of each checkpoint, by the file's name.
    """
    with locked(run):
        found = [readable_record(run / name).get("evaluation", {}) for name in (BEFORE, METRICS)]
        kept = {
            split: same
            for split, parts in _merged(*found).items()
            if (same := {name: of for name, of in parts.items() if of.get("checkpoint") in checkpoints.values()})
        }
        evaluation = {"evaluation": kept} if kept else {}
        write_json(run / METRICS, {**record, "checkpoints": dict(checkpoints), **evaluation})


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep other processes from writing ``metrics.json`` meanwhile: it is read, changed and written."""
    with lock(run, METRICS_LOCK, patience=None) or contextlib.nullcontext():
        yield


def _merged(*evaluations: dict[str, Any]) -> dict[str, Any]:
    """Evaluations of the same splits together; the later ones have the last word."""
    merged: dict[str, Any] = {}
    for split, parts in (item for evaluation in evaluations for item in evaluation.items()):
        merged[split] = merged.get(split, {}) | parts
    return merged


def _is_record(record: Any) -> bool:
    """Whether mappings are where a record has mappings, and a count of steps is one that TensorBoard can take."""
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
