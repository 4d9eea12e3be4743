"""Read the points of a sweep into a table, and find which of its numbers may be compared."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from src.reporting.levels import BITS
from src.runs.trust import read_yaml
from src.sweeps.plan import Plan, point_name, short_names
from src.sweeps.status import Record, compared, read_metrics
from src.system.directions import natural_mode
from src.system.errors import UserError
from src.system.locks import is_locked

SEED = "seed"
NOT_SETTINGS = ("ckpt_path", "tags", "sweep")
NOT_RECORDED = "–"
LARGEST = 2**63  # of numbers that tables and axes can hold
# Column of results.csv: its path in metrics.json.
FIGURES = {
    "test_elbo": "test.elbo",
    "test_distortion": "test.distortion",
    "test_rate": "test.rate",
    "bits_per_dim": "test.bits_per_dim",
    "active_latents": "test.active_latents",
    "latent_dim": "latent_dim",
    "kl_weight": "kl_weight",
    "trainable_parameters": "trainable_parameters",
    "epochs": "epochs",
    "steps": "steps",
    "wall_seconds": "seconds",
    "train_images_per_second": "train_images_per_second",
    "process_mib": "peak_memory_mib.process",
    "gpu_mib": "peak_memory_mib.gpu",
}
FACTS = {
    "data_name": "data.name",
    "fingerprint": "data.fingerprint",
    "stored_fingerprint": "data.stored_fingerprint",
    "image_shape": "data.image_shape",
    "likelihood": "likelihood",
    "pixels": "pixels",
    "pseudo_likelihood": "pseudo_likelihood",
    "precision": "precision",
    "devices": "devices",
    "git_commit": "git_commit",
    "tested_batches": "config.trainer.limit_test_batches",
    "validated_batches": "config.trainer.limit_val_batches",
    "kept_by": "config.callbacks.checkpoint.monitor",
}
# Numbers may be compared where all of these columns are equal: the words for each.
SAME_KIND = {
    "data_name": "the data set",
    "fingerprint": "the images, their splits or what was done to their pixels (size, binarization, dequantization)",
    "likelihood": "the likelihood",
    "pseudo_likelihood": "whether the likelihood is one of the data",
    "tested_batches": "trainer.limit_test_batches",
    "validated_batches": "trainer.limit_val_batches",
    "compared_by": "compare_by",
    "kept_by": "callbacks.checkpoint.monitor",
}


@dataclass
class Results:
    """The contents of a folder of runs.

    Attributes:
        folder: path of the folder.
        plan: the sweep's command; empty for runs that were started one by one.
        table: a row a point, in grid order: ``point``, ``status``, ``error``, ``path``, the swept keys (with dots, or
            as ``seed``), ``value`` (of the metric ``compared_by``, at the epoch that was kept), ``whole_seconds``
            (start-up included; ``wall_seconds`` are the training's), and the columns of FIGURES and FACTS.
        swept: keys whose values differ, without the seed.
        overrides: command line of each point, by its name.
    """

    folder: Path
    plan: Plan
    table: pd.DataFrame
    swept: list[str]
    overrides: dict[str, list[str]]

    @property
    def names(self) -> dict[str, str]:
        """Short names of the swept keys, and of the seed."""
        return {**short_names(self.swept), SEED: SEED}

    @property
    def keys(self) -> list[str]:
        """The swept keys, and the seed where points differ in it."""
        return [*self.swept, *([SEED] if self.table[SEED].nunique() > 1 else [])]

    @property
    def finished(self) -> pd.DataFrame:
        """The rows of points that have a result."""
        return self.table[self.table.status == "finished"]

    def families(self) -> Iterator[pd.DataFrame]:
        """Yield groups of finished points whose numbers may be compared, the largest group first."""
        kind = self._kind()
        groups = [part for _, part in self.finished.groupby([kind[column] for column in SAME_KIND], sort=False)]
        yield from sorted(groups, key=len, reverse=True)

    def _kind(self) -> pd.DataFrame:
        """Return the columns SAME_KIND of the finished points, as text.

        Bits per dimension compare whatever likelihood gives them, and with noise or without: see :data:`BITS`.
        """
        points, bits = self.finished, self.finished.compared_by == BITS
        stored = points.stored_fingerprint.where(points.stored_fingerprint.notna(), points.fingerprint)
        kind = points.assign(fingerprint=points.fingerprint.mask(bits, stored))[list(SAME_KIND)]
        kind = kind.map(lambda value: "not recorded" if pd.isna(value) else str(value))
        kind.loc[bits, ["likelihood", "pseudo_likelihood"]] = "any"
        return kind

    def differences(self) -> list[str]:
        """Return the reasons why not all numbers can be compared; empty where they can."""
        kind = self._kind()
        return [
            f"{meaning} ({', '.join(sorted(short(v) for v in kind[column].unique()))})"
            for column, meaning in SAME_KIND.items()
            if kind[column].nunique() > 1
        ]


def read_results(folder: Path) -> Results:
    """Read every run below ``folder``.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"folder={folder} is no folder: name the one that a multirun left, or one that holds runs")
    runs = sorted(set(_run_folders(folder)))
    if not runs:
        raise UserError(f"there is no run below {folder}: name the folder that a multirun left, or one that holds runs")
    plan = Plan.load(folder) or Plan({}, {})
    rows = [_row(folder, run) for run in runs]
    begun = {tuple(sorted(row["overrides"])) for row in rows}
    waiting = [(n, words) for n, words in enumerate(plan.points) if tuple(sorted(words)) not in begun]
    rows += [_waiting(folder, plan, number, words) for number, words in waiting]
    overrides = {row["point"]: row.pop("overrides") for row in rows}
    typed = [dict(o.lstrip("+").partition("=")[::2] for o in overrides[row["point"]]) for row in rows]
    keys = _swept(plan, typed)
    for row, values in zip(rows, typed, strict=True):
        config, seed = row.pop("config"), row.pop("own_seed")
        row.update({key: _value(values, config, key, Path(row["path"])) for key in keys if key != SEED})
        row[SEED] = seed if seed is not None else plain(values.get(SEED, select(config, SEED)))
    table = pd.DataFrame(rows).sort_values(["number", "point"], kind="stable", ignore_index=True)
    return Results(folder, plan, table, [key for key in keys if key != SEED], overrides)


def _value(values: dict[str, str], config: dict[str, Any], key: str, run: Path) -> Any:
    """Return the value of a swept key in a run: as typed, else from its config, else the choice of a group."""
    found = values.get(key, select(config, key))
    if found is None or isinstance(found, dict):
        found = select(_yaml(run / ".hydra" / "hydra.yaml"), "hydra.runtime.choices", key)
    return NOT_RECORDED if found is None else plain(found)


def plain(value: Any) -> Any:
    """Return a typed value as a number where it is one that an axis can show, else as text."""
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()  # as it is typed
    for kind in (int, float):
        try:
            number = value if isinstance(value, int | float) else kind(value)
        except (ValueError, TypeError):
            continue
        return number if math.isfinite(number) and abs(number) < LARGEST else str(value)
    return str(value)


def short(value: Any) -> str:
    """Write a value for people: hashes with 8 digits, floats with 4."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text[:8] if len(text) == 32 and all(c in "0123456789abcdef" for c in text) else text


def select(tree: Any, path: str, *more: str) -> Any:
    """Return the value at a dotted path in nested mappings, then at keys that may hold dots; None where it ends."""
    for key in (*path.split("."), *more):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _run_folders(folder: Path) -> Iterator[Path]:
    for pattern, up in (("**/point.json", 0), ("**/metrics.json", 0), ("**/.hydra/config.yaml", 1)):
        yield from (path.parents[up] for path in folder.glob(pattern))


def _row(folder: Path, run: Path) -> dict[str, Any]:
    """Return the row of one run; what its records lack is None."""
    record, metrics = Record.load(run), read_metrics(run)
    error = record.error if record else None
    if not metrics and (run / "metrics.json").exists():
        error = "metrics.json is damaged, or an evaluation's alone"
    status = "finished" if metrics else "failed" if error else record.status if record else "running"
    typed = record.overrides if record else _yaml(run / ".hydra" / "overrides.yaml")
    metric, value = compared(metrics)
    config = metrics.get("config") or _yaml(run / ".hydra" / "config.yaml")
    return {
        "point": str(run.relative_to(folder)) if run != folder else run.name,
        "path": str(run),
        "number": record.number if record else 0,
        "status": "interrupted" if status == "running" and not is_locked(run) else status,
        "error": None if metrics else error,
        "attempts": record.attempts if record else 1,
        "compared_by": metric,
        "maximize": (natural_mode(str(metric)) or select(config, "callbacks.checkpoint.mode")) != "min",
        "value": _number(value),
        "whole_seconds": _whole_seconds(record),
        **{column: _number(select(metrics, path)) for column, path in FIGURES.items()},
        **{column: select({**metrics, "config": config}, path) for column, path in FACTS.items()},
        "overrides": [o for o in typed if isinstance(o, str)] if isinstance(typed, list) else [],
        "own_seed": _number(metrics.get("seed")),
        "config": config if isinstance(config, dict) else {},
    }


def _whole_seconds(record: Record | None) -> float:
    """Return the seconds of a point from start to end; NaN after several attempts, whose sum is not recorded."""
    known = record is not None and record.attempts == 1
    return float((_number(record.seconds) if known else None) or math.nan)


def _number(value: Any) -> float | int | None:
    """Return a number of a run; None where it is missing or not finite."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and math.isfinite(value) else None


def _yaml(path: Path) -> Any:
    try:
        return read_yaml(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def _waiting(folder: Path, plan: Plan, number: int, overrides: list[str]) -> dict[str, Any]:
    """Return the row of a point that the sweep has not started."""
    path = folder / point_name(overrides, plan.swept)
    return {
        "point": path.name,
        "path": str(path),
        "number": number,
        "status": "waiting",
        "error": "it has not been started: repeat the sweep's command",
        "overrides": overrides,
        "own_seed": None,
        "config": {},
    }


def _swept(plan: Plan, typed: Sequence[dict[str, str]]) -> list[str]:
    """Return the plan's keys and others that differ between command lines, as another command may have added points."""
    planned = [key.lstrip("+") for key in plan.swept]
    keys = dict.fromkeys(key for values in typed for key in values if key not in (*planned, *NOT_SETTINGS))
    return planned + [key for key in keys if len({values.get(key) for values in typed}) > 1]
