"""What the report says in words: numbers, configurations, the best one, commands."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from src.reporting.results import Results
from src.reporting.statistics import Verdict
from src.reporting.style import shown
from src.system.directions import as_printed
from src.system.files import quoted

# Column: what to call it, and 1 where less of it is better.
COSTS = {
    "whole_seconds": ("time", 1),
    "wall_seconds": ("training time", 1),
    "train_images_per_second": ("speed", -1),
    "memory_mib": ("memory", 1),
    "trainable_parameters": ("size", 1),
}
TESTED = ("test_elbo", "test_distortion", "test_rate")
MOST_RIVALS = 4  # that are named beside the best configuration
MOST_NAMED = 3  # configurations of a front in its caption


def elbo_name(pseudo: Any) -> str:
    """What to call the elbo of points whose likelihood is one of the data, or is not."""
    return "pseudo-elbo" if pd.notna(pseudo) and pseudo else "elbo"


def with_interval(mean: float, half: float) -> str:
    """``-96.73 ± 0.12``; without the interval where there is none."""
    return number(mean) + (f" ± {number(half)}" if math.isfinite(half) else "")


def number(value: Any, digits: int = 2) -> str:
    """A number for a table, an en dash where there is none."""
    if pd.isna(value):
        return "–"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"


def configuration(row: Mapping[str, Any], keys: Sequence[str], names: Mapping[str, str]) -> str:
    """``latent_dim = 8, kl_weight = 0.5``."""
    return ", ".join(f"{names[key]} = {shown(row[key])}" for key in keys)


def best_in_words(
    results: Results, points: pd.DataFrame, keys: Sequence[str], means: pd.DataFrame, chosen: Verdict
) -> dict[str, Any]:
    """The best configuration, how sure that is, and its best run; elbos with the sign that papers print."""
    row = means[means.key == chosen.best.key].iloc[0]
    elbo = elbo_name(points.pseudo_likelihood.iloc[0])
    metric, sign = as_printed(str(points.compared_by.iloc[0]), elbo)
    tested = {
        "test_elbo": (f"−{elbo}", -1),
        "test_distortion": (f"{elbo.removesuffix('elbo')}distortion", 1),
        "test_rate": ("rate", 1),
    }
    best_points = points[points.point.isin(row.points)]
    example = best_points.sort_values("value", ascending=not best_points.maximize.iloc[0]).iloc[0]
    return {
        "what": configuration(row, keys, results.names) or example.point,
        "text": chosen.text,
        "rivals": [configuration(rival, keys, results.names) for rival in chosen.rivals[:MOST_RIVALS]],
        "more_rivals": max(0, len(chosen.rivals) - MOST_RIVALS),
        "metric": metric,
        "value": with_interval(sign * row.value, row.value_ci),
        "figures": [
            (name, with_interval(way * row[column], row[f"{column}_ci"]))
            for column, (name, way) in tested.items()
            if pd.notna(row[column])
        ],
        "seeds": int(row.seeds),
        "point": example.point,
        "path": example.path,
    }


def why_no_best(points: pd.DataFrame) -> str:
    """The loss of one KL weight does not compare with that of another."""
    metric = str(points.compared_by.iloc[0])
    if not metric.endswith("/loss") or points.kl_weight.nunique() < 2:
        return ""
    return f"{metric} has another meaning at every KL weight, so it chooses no best point: compare_by=val/elbo does"


def front_in_words(
    table: pd.DataFrame, fronts: Mapping[str, Sequence[int]], keys: Sequence[str], names: Mapping[str, str]
) -> str:
    """Which configurations no other one beats, for each cost."""
    parts = []
    for column, front in fronts.items():
        who = [configuration(table.iloc[i], keys, names) for i in front[-MOST_NAMED:]]
        if all(who):
            more = f"{len(front) - MOST_NAMED} cheaper ones, then " if len(front) > MOST_NAMED else ""
            parts.append(f"by {COSTS[column][0]} {more}{'; '.join(who)}")
    told = f" On the fronts, from cheap to good: {'. '.join(p[0].upper() + p[1:] for p in parts)}." if parts else ""
    return "Points that ran side by side shared the machine: their times compare with each other only." + told


def commands(results: Results, row: pd.Series) -> dict[str, str]:
    """What to type to do it again, to evaluate it and to go on with it."""
    overrides, path = results.overrides[row.point], Path(row.path)
    plain = re.fullmatch(r"[\w./+-]+", str(path)) is not None
    at = str(path) if plain else quoted(path)
    known = [f"seed={row.seed}" if o in ("seed=null", "seed=None") else o for o in overrides]
    train = ["python", "-m", "src.train", *(o for o in known if not o.startswith("ckpt_path="))]
    epochs = [] if pd.isna(row.epochs) else [f"trainer.max_epochs={2 * int(row.epochs)}"]
    longer = [w for w in train if not (epochs and w.startswith("trainer.max_epochs="))] + epochs
    found = {"again": shlex.join(train)}
    if (path / "checkpoints" / "best.ckpt").is_file():
        found["evaluate"] = shlex.join(["python", "-m", "src.evaluate", f"run={at}"])
    if (path / "checkpoints" / "last.ckpt").is_file():
        found["continue"] = shlex.join([*longer, f"hydra.run.dir={at}", "ckpt_path=last"])
    return found
