"""Prepare a sweep before its first point and report on it after the last, with any launcher."""

import logging
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from src.sweeps.hparams import name_columns
from src.sweeps.plan import Plan, plan_in, plan_of, sweep_folder
from src.sweeps.points import Missing, missing
from src.sweeps.slots import slots_here
from src.system.errors import UserError
from src.system.explain import explain
from src.system.files import quoted

if TYPE_CHECKING:  # pandas is imported only at the end of a sweep
    from src.reporting.results import Results

log = logging.getLogger(__name__)

LARGEST_EXIT_CODE = 100  # shells reserve those above 125


class Sweep(Callback):
    """Name the sweep's folder and write its plan; at the end write the report and count points without a result."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write ``sweep.json`` and TensorBoard's columns before the first point starts."""
        try:
            plan = plan_of(config, shlex.join(["python", "-m", "src.train", *sys.argv[1:]]))
            _check_slots(config, plan)
        except UserError as error:
            sys.exit(f"error: {error}")
        folder = sweep_folder(plan, config)
        with open_dict(config):
            config.hydra.sweep.dir = str(folder)
            # Hydra composes each point from these overrides and the point's own.
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(folder)}")
        try:
            plan.save(folder)
            keys = dict.fromkeys([*plan.swept, *(["tags"] if config.tags else [])])
            name_columns(folder, keys, dict.fromkeys(["test/elbo", config.compare_by]))
        except OSError as error:
            sys.exit(f"error: {explain(error)}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the report after the last point; the exit status is the number of points without a result."""
        from src.reporting.report import write_report
        from src.reporting.results import read_results

        folder = Path(config.hydra.sweep.dir)
        without = missing(folder, plan_in(folder))
        try:
            results = read_results(folder)
            page = write_report(results)
        except Exception as error:  # the points are finished, even if the report fails
            log.exception("no report: %s", explain(error) or error)
        else:
            print("; ".join([*last_words(results), f"report: {page}"]))
        if any(without):
            print("; ".join(_advice(without)))
            sys.exit(min(sum(without), LARGEST_EXIT_CODE))


def _advice(without: Missing) -> Iterator[str]:
    """Say how to get the missing results."""
    if without.failed:
        yield f"{_points(without.failed)} failed: mend what the line of each names, or repeat the command to try again"
    if without.diverged:
        yield (
            f"{_points(without.diverged)} diverged, and would again: change the settings, "
            "such as a smaller optimizer.lr (the report says at which step)"
        )


def _points(count: int) -> str:
    return f"{count} point{'s' if count > 1 else ''}"


def _check_slots(config: DictConfig, plan: Plan) -> None:
    """Check before the folder is made that this machine has slots for the sweep; other launchers need none.

    Raises:
        UserError: the machine has none.
    """
    launcher = config.hydra.launcher
    if launcher is not None and str(launcher.get("_target_")).endswith(".SlotsLauncher"):
        slots_here(config, plan, launcher.slots, launcher.per_gpu, launcher.threads)


def last_words(results: "Results") -> list[str]:
    """Say how many points are done and which configuration is best by the report's statistics.

    None is named if values cannot be compared: those of several kinds, or losses of several KL weights.
    """
    from src.reporting.statistics import configurations, verdict
    from src.reporting.words import TESTED, best_in_words, why_no_best

    words = [f"{len(results.finished)} of {len(results.table)} done"]
    points = next(results.families(), None)
    if points is None or len([*results.families()]) > 1 or why_no_best(points):
        return words
    first, swept = points.iloc[0], results.swept
    if (chosen := verdict(points, swept, bool(first.maximize))) is None:
        return words
    best = best_in_words(results, points, swept, configurations(points, swept, ("value", *TESTED)), chosen)
    seeds = f"{best['seeds']} seed{'s' if best['seeds'] > 1 else ''}"
    others = len(chosen.rivals)
    tested = others and chosen.best.seeds > 1  # one seed gives no error estimate
    doubt = f", cannot be told from {others} other{'s' if others > 1 else ''}" if tested else ""
    return [*words, f"best {best['what'].replace(' = ', '=')}: {best['metric']} {best['value']} ({seeds}){doubt}"]
