"""What comes before and after a sweep, whichever engine runs its points."""

import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from src.errors import UserError, explain
from src.files import quoted
from src.sweeps.plan import plan_in, plan_of, sweep_folder
from src.sweeps.points import unfinished
from src.sweeps.tensorboard import name_columns

log = logging.getLogger(__name__)

MOST_EXIT_CODE = 100  # shells use those above 125


class Sweep(Callback):
    """Names the sweep's folder, writes down what was asked for; at the end the report, and how many points failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before the first point: ``sweep.json``, and what TensorBoard is to show."""
        try:
            plan = plan_of(config, shlex.join(["python", "-m", "src.train", *sys.argv[1:]]))
        except UserError as error:
            sys.exit(f"error: {error}")
        folder = sweep_folder(plan, config)
        with open_dict(config):
            config.hydra.sweep.dir = str(folder)
            # Hydra composes each point anew, from these and the point's own.
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(folder)}")
        try:
            plan.save(folder)
            keys = dict.fromkeys([*plan.swept, *(["tags"] if config.tags else [])])
            name_columns(folder, keys, dict.fromkeys(["test/elbo", config.compare_by]))
        except OSError as error:
            sys.exit(f"error: {explain(error)}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """After the last point: the report; the exit status is the number of points that are not finished."""
        from src.reporting.report import write_report
        from src.reporting.results import read_results

        folder = Path(config.hydra.sweep.dir)
        missing = unfinished(folder, plan_in(folder))
        try:
            print(f"report: {write_report(read_results(folder))}")
        except Exception as error:  # the points count, whatever becomes of the report
            log.exception("no report: %s", explain(error) or error)
        if missing:
            print(f"{missing} point{'s' if missing > 1 else ''} failed: repeat the command to try again")
            sys.exit(min(missing, MOST_EXIT_CODE))
