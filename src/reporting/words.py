"""The report's words: numbers, configurations, the best one, fronts and commands."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from src.data.pixels import Pixels
from src.reporting.results import SEED, Results
from src.reporting.statistics import FEW_SEEDS, Verdict
from src.reporting.style import shown
from src.system.directions import as_printed
from src.system.files import as_value

# Column of a cost: its name, and 1 where less of it is better, else -1.
COSTS = {
    "whole_seconds": ("time", 1),
    "wall_seconds": ("training time", 1),
    "train_images_per_second": ("speed", -1),
    "memory_mib": ("memory", 1),
    "trainable_parameters": ("size", 1),
}
TESTED = ("test_elbo", "test_distortion", "test_rate")
MOST_RIVALS = 4  # named beside the best configuration
MOST_NAMED = 3  # configurations of a front named in the caption


def elbo_name(point: pd.Series) -> str:
    """Return what the elbo of a point is called: ``pseudo-elbo`` where the likelihood is no probability of the data."""
    pseudo = "pseudo-" if pd.notna(point.pseudo_likelihood) and point.pseudo_likelihood else ""
    return f"{pseudo}elbo{' of features' if point.pixels == Pixels.FEATURES else ''}"


def with_interval(mean: float, half: float) -> str:
    """Write ``-96.73 ± 0.12``, without the interval where it is not finite."""
    return number(mean) + (f" ± {number(half)}" if math.isfinite(half) else "")


def number(value: Any, digits: int = 2) -> str:
    """Write a number for a table; an en dash where it is missing."""
    if pd.isna(value):
        return "–"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"


def configuration(row: Mapping[str, Any], keys: Sequence[str], names: Mapping[str, str]) -> str:
    """Write ``latent_dim = 8, kl_weight = 0.5``."""
    return ", ".join(f"{names[key]} = {shown(row[key])}" for key in keys)


def best_in_words(
    results: Results, points: pd.DataFrame, keys: Sequence[str], means: pd.DataFrame, chosen: Verdict
) -> dict[str, Any]:
    """Describe the best configuration, how sure it is, and its best run; elbos have the sign that papers print."""
    row = means[means.key == chosen.best.key].iloc[0]
    elbo = elbo_name(points.iloc[0])
    metric, sign = as_printed(str(points.compared_by.iloc[0]), elbo)
    tested = {
        "test_elbo": (f"−{elbo}", -1),
        "test_distortion": (elbo.replace("elbo", "distortion"), 1),
        "test_rate": ("rate", 1),
    }
    best_points = points[points.point.isin(row["points"])]
    example = best_points.sort_values("value", ascending=not best_points.maximize.iloc[0]).iloc[0]
    return {
        "what": configuration(row, keys, results.names) or example.point,
        "text": chosen.text,
        "more_seeds": more_seeds(results, points, example.point) if chosen.few_seeds or chosen.rivals else None,
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
    """Return why points of several KL weights have no best one: their losses do not compare. Empty where they do."""
    metric = str(points.compared_by.iloc[0])
    if not metric.endswith("/loss") or points.kl_weight.nunique() < 2:
        return ""
    return f"{metric} has another meaning at every KL weight, so it chooses no best point: compare_by=val/elbo does"


def more_seeds(results: Results, points: pd.DataFrame, best: str) -> dict[str, str] | None:
    """Return what to type to be surer, and what that does; None where no command is known.

    A grid goes on in its folder. A search cannot, as the seed would be one more key of its space: its best point is
    repeated in another folder.

    Args:
        results: the whole folder.
        points: those that are compared.
        best: name of the best point.
    """
    seeds = sorted({int(seed) for seed in points[SEED].dropna() if isinstance(seed, int | float)})
    wanted = max(FEW_SEEDS, len(seeds) + 2)
    new = [seed for seed in range(2 * wanted) if seed not in seeds][: wanted - len(seeds)]
    # Another command may have filled the folder before: repeating the last one would not train the best point again.
    if any({*_without(words, SEED)} <= {*results.overrides[best]} for words in results.plan.points):
        # Points whose names have no seed would be trained again under a name that has one.
        asked = sorted(seeds + new) if SEED in results.plan.swept else new
        words = _without(shlex.split(results.plan.command), SEED, "hydra.sweep.dir")
        at = [f"hydra.sweep.dir={as_value(results.folder)}"]
        what = "Add seeds to this folder; finished points stay as they are"
    elif results.plan.command:
        asked, at = sorted(seeds + new), []
        words = ["python", "-m", "src.train", "-m", *_without(results.overrides[best], SEED, "ckpt_path")]
        what = "Repeat the best point with several seeds, in a sweep of its own"
    else:
        return None
    return {"what": what, "command": shlex.join([*words, f"{SEED}={','.join(map(str, asked))}", *at])}


def _without(words: Sequence[str], *keys: str) -> list[str]:
    return [word for word in words if word.lstrip("+").partition("=")[0] not in keys]


def front_in_words(
    table: pd.DataFrame, fronts: Mapping[str, Sequence[int]], keys: Sequence[str], names: Mapping[str, str]
) -> str:
    """Say what the Pareto fronts are, and which configurations are on them."""
    parts = []
    for column, front in fronts.items():
        who = [configuration(table.iloc[i], keys, names) for i in front[-MOST_NAMED:]]
        if all(who):
            more = f"{len(front) - MOST_NAMED} cheaper ones, then " if len(front) > MOST_NAMED else ""
            parts.append(f"By {COSTS[column][0]}: {more}{'; '.join(who)}.")
    front = "Diamonds: the cheapest configuration, and each that is better than all cheaper diamonds"
    if (table.seeds > 1).all():
        front += " by more than chance explains (p < 0.05, corrected for all pairs of configurations)."
    else:
        front += "; one seed gives no error estimate, so a small step may be chance."
    shared = "Points that ran side by side shared the machine: their times compare with each other only."
    return " ".join([front, *parts, shared])


def commands(results: Results, row: pd.Series) -> dict[str, str]:
    """Return what to type to run a point again, to evaluate it and to train on."""
    overrides, path = results.overrides[row.point], Path(row.path)
    at = as_value(path)
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
