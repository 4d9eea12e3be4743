"""The points of a sweep as a table, and which of its numbers may be compared."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from src.errors import UserError
from src.sweeps.plan import Plan, short_names
from src.sweeps.points import Record, is_locked

SEED = "seed"
# Column of results.csv: where it stands in metrics.json.
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
    "data": "data.name",
    "fingerprint": "data.fingerprint",
    "likelihood": "likelihood",
    "pixels": "pixels",
    "pseudo_likelihood": "pseudo_likelihood",
    "precision": "precision",
    "devices": "devices",
    "git_commit": "git_commit",
}
# Numbers are of the same kind where all of these are equal; what each difference means.
SAME_KIND = {
    "data": "the data set",
    "fingerprint": "the images, their splits or what was done to their pixels (size, binarization, dequantization)",
    "likelihood": "the likelihood",
    "pseudo_likelihood": "whether the likelihood is one of the data",
    "monitor": "the metric that chose the weights",
}


@dataclass
class Results:
    """What a folder of runs holds.

    Attributes:
        folder: it.
        plan: the sweep's command; empty for runs that were started one by one.
        table: a row a point, in grid order: ``point``, ``status``, ``error``, ``path``, the swept keys (with dots, or
            as ``seed``), ``value`` (the monitored metric at the best epoch) and the columns of FIGURES and FACTS.
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
        """Short names of the swept keys."""
        return short_names(self.swept)

    @property
    def finished(self) -> pd.DataFrame:
        """Rows of the points that ended well."""
        return self.table[self.table.status == "finished"]

    def families(self) -> Iterator[pd.DataFrame]:
        """Finished points whose numbers are of the same kind, the largest group first."""
        finished = self.finished.copy()
        kind = finished[list(SAME_KIND)].fillna("not recorded").astype(str)
        groups = [part for _, part in finished.groupby([kind[column] for column in SAME_KIND], sort=False)]
        yield from sorted(groups, key=len, reverse=True)

    def differences(self) -> list[str]:
        """Why not all numbers can be compared; empty where they can."""
        kind = self.finished[list(SAME_KIND)].fillna("not recorded").astype(str)
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
        raise UserError(f"sweep={folder} is no folder: name the one that a multirun left, or one that holds runs")
    runs = sorted(set(_run_folders(folder)))
    if not runs:
        raise UserError(f"there is no run below {folder}: name the folder that a multirun left, or one that holds runs")
    plan = Plan.load(folder) or Plan({}, {})
    rows = [_row(folder, run) for run in runs]
    overrides = {row["point"]: row.pop("overrides") for row in rows}
    typed = [dict(o.removeprefix("+").partition("=")[::2] for o in overrides[row["point"]]) for row in rows]
    keys = _swept(plan, typed)
    for row, values in zip(rows, typed, strict=True):
        config = row.pop("config")
        row.update({key: plain(values.get(key, _default(config, key))) for key in keys})
        row.setdefault(SEED, plain(values.get(SEED, _default(config, SEED))))
    table = pd.DataFrame(rows).sort_values(["number", "point"], kind="stable", ignore_index=True)
    return Results(folder, plan, table, [key for key in keys if key != SEED], overrides)


def plain(value: Any) -> Any:
    """A typed value as a number where it is one."""
    if not isinstance(value, str):
        return value if isinstance(value, int | float) or value is None else str(value)
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def short(value: Any) -> str:
    """A value for people: hashes cut, numbers without noise."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text[:8] if len(text) == 32 and all(c in "0123456789abcdef" for c in text) else text


def select(tree: Any, path: str) -> Any:
    """The value at a dotted path in nested mappings; None where it ends."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _run_folders(folder: Path) -> Iterator[Path]:
    for pattern, up in (("**/point.json", 0), ("**/metrics.json", 0), ("**/.hydra/config.yaml", 1)):
        yield from (path.parents[up] for path in folder.glob(pattern))


def _row(folder: Path, run: Path) -> dict[str, Any]:
    """What one run says of itself, as far as it says it."""
    record, error = Record.load(run), None
    try:
        metrics = json.loads((run / "metrics.json").read_text())
        if not isinstance(metrics, dict):
            raise ValueError("not a record")
    except FileNotFoundError:
        metrics = {}
    except (OSError, ValueError) as problem:
        metrics, error = {}, f"metrics.json is damaged ({problem})"
    status = "finished" if metrics else "failed" if error else record.status if record else "interrupted"
    if record is not None and record.status == "failed":
        status, error = "failed", error or record.error
    best = metrics.get("best") if isinstance(metrics.get("best"), dict) else {}
    monitor = next(iter(best), None)
    config = metrics.get("config") or _yaml(run / ".hydra" / "config.yaml")
    return {
        "point": str(run.relative_to(folder)) if run != folder else run.name,
        "path": str(run),
        "number": record.number if record else 0,
        "status": "interrupted" if status == "running" and not is_locked(run) else status,
        "error": error,
        "attempts": record.attempts if record else 1,
        "monitor": monitor,
        "maximize": select(config, "callbacks.checkpoint.mode") != "min",
        "value": _number(best.get(monitor)),
        **{column: _number(select(metrics, path)) for column, path in FIGURES.items()},
        **{column: select(metrics, path) for column, path in FACTS.items()},
        "overrides": record.overrides if record else _typed(run),
        "config": config if isinstance(config, dict) else {},
    }


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _typed(run: Path) -> list[str]:
    typed = _yaml(run / ".hydra" / "overrides.yaml")
    return [o for o in typed if isinstance(o, str)] if isinstance(typed, list) else []


def _swept(plan: Plan, typed: Sequence[dict[str, str]]) -> list[str]:
    """The plan's keys; without a plan, those that differ between the runs' command lines."""
    if plan.swept:
        return [key.removeprefix("+") for key in plan.swept]
    keys = dict.fromkeys(key for values in typed for key in values if key not in ("ckpt_path", "tags"))
    return [key for key in keys if len({values.get(key) for values in typed}) > 1]


def _default(config: dict[str, Any], key: str) -> Any:
    """What a config says where the command line does not name the key."""
    value = select(config, key)
    return value if value is None or isinstance(value, str | int | float) else None
