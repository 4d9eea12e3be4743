"""Search with Optuna through Hydra.

The plugin hydra-optuna-sweeper 1.3 needs Optuna 2: https://github.com/hydra-ecosystem/hydra/issues/2162
"""

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from src.system.directions import natural_mode, printed
from src.system.errors import UserError
from src.system.locks import lock

STUDY = "sweep"


class OptunaSweeper(Sweeper):
    """Optimize the metric ``compare_by`` with a tree-structured Parzen estimator.

    The study is ``optuna.db`` in the sweep's folder. The same command resumes it and retries points that were
    interrupted or failed. A point that diverged counts as pruned. The study suggests as many points at a time as the
    launcher has slots.

    Args:
        params: search space in Hydra's syntax: ``choice(2, 8)``, ``range(1, 4)``, ``interval(0.1, 1)``,
            ``tag(log, interval(1e-4, 1e-2))``, ``tag(int, log, interval(2, 64))``.
        trials: total number of points.
        at_once: number of points suggested at a time; None for one a slot.
        startup: number of random points before the estimator begins.
        seed: seed of the search.
    """

    def __init__(
        self,
        params: dict[str, str],
        trials: int = 30,
        at_once: int | None = None,
        startup: int = 10,
        seed: int = 0,
    ) -> None:
        self.params = params
        self.trials = trials
        self.at_once = at_once
        self.startup = startup
        self.seed = seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra passes and make the launcher."""
        self.config = config
        self.context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> float | None:
        """Search and return the best value; None where no point has one."""
        try:
            import optuna
        except ImportError:
            sys.exit("error: sweep=optuna needs Optuna: pip install '.[optuna]'")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder = Path(self.config.hydra.sweep.dir)
        try:
            space, fixed = self._space(arguments)
            with _exclusive(folder):
                return self._run_study(folder, space, fixed)
        except UserError as error:
            sys.exit(f"error: {error}")

    def _space(self, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the search space and the fixed overrides."""
        space, fixed = search_space(self.params, arguments)
        if self.config.compare_by.endswith("/loss") and "model.kl_weight" in space:
            raise UserError(
                f"compare_by={self.config.compare_by} has another meaning at every model.kl_weight: take val/elbo, or "
                "fix the weight"
            )
        return space, fixed

    def _run_study(self, folder: Path, space: dict[str, Any], fixed: list[str]) -> float | None:
        import optuna

        if set("?%#{}") & set(str(folder.absolute())):
            raise UserError(f"{folder.absolute()}: a study cannot be kept in a folder with one of ?%#{{}} in its path")
        study = optuna.create_study(
            study_name=STUDY,
            storage=f"sqlite:///{folder.absolute()}/optuna.db",
            load_if_exists=True,
            direction=direction_of(self.config),
        )
        metric = self.config.compare_by
        former = study.user_attrs.get("monitor", metric)
        if former != metric or f"{study.direction.name.lower()}" != direction_of(self.config):
            raise UserError(
                f"the search in {folder} was begun for another metric ({former}): choose another hydra.sweep.dir"
            )
        study.set_user_attr("monitor", metric)
        # With the same seed a resumed search would draw its first points again.
        seed = self.seed + len(study.trials)
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup, constant_liar=True)
        self._requeue(study)
        self._search(study, space, fixed)
        return study.best_value if any(t.state.name == "COMPLETE" for t in study.trials) else None

    def _requeue(self, study: Any) -> None:
        """Put points that were interrupted or failed back into the queue."""
        from optuna.trial import TrialState

        queued = {trial.user_attrs.get("of") for trial in study.trials}
        for trial in study.get_trials(states=(TrialState.RUNNING, TrialState.FAIL)):
            if trial.state == TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)
            if trial.params and trial.number not in queued:
                study.enqueue_trial(trial.params, user_attrs={"of": trial.number})

    def _search(self, study: Any, space: dict[str, Any], fixed: list[str]) -> None:
        from optuna.trial import TrialState

        kept = (TrialState.COMPLETE, TrialState.PRUNED)
        failed = 0
        while (left := self.trials - failed - len(study.get_trials(states=kept, deepcopy=False))) > 0:
            width = self.at_once or getattr(self.launcher, "width", 4)
            try:
                trials = [study.ask(space) for _ in range(min(left, width))]
            except ValueError as error:
                advice = "the search in this folder was begun with another space: choose another hydra.sweep.dir"
                raise UserError(f"{advice} ({error})") from error
            points = [[*fixed, *(f"{key}={_typed(value)}" for key, value in trial.params.items())] for trial in trials]
            jobs = self.launcher.launch(points, initial_job_idx=trials[0].number)
            for trial, job in zip(trials, jobs, strict=True):
                value = job.return_value
                if value is None:
                    failed += 1
                    study.tell(trial, state=TrialState.FAIL)
                elif math.isnan(value):
                    study.tell(trial, state=TrialState.PRUNED)
                else:
                    study.tell(trial, value)
            done = len(study.get_trials(states=kept, deepcopy=False))
            any_value = any(t.state == TrialState.COMPLETE for t in study.trials)
            best = f", best {printed(self.config.compare_by, study.best_value)}" if any_value else ""
            print(f"search: {done} of {self.trials} points{best}", flush=True)


def direction_of(config: DictConfig) -> str:
    """Return ``minimize`` or ``maximize``, as the metric ``compare_by`` demands."""
    return f"{natural_mode(config.compare_by)}imize"


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Keep other searches out of the folder."""
    try:
        held = lock(folder, ".search.lock")
    except BlockingIOError as error:
        raise UserError(f"another process searches in {folder}: stop that, or wait for it") from error
    with held or contextlib.nullcontext():
        yield


def search_space(params: dict[str, str], arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return Optuna's distributions of the swept keys, and the overrides of every point.

    The command line takes precedence over ``params``.

    Raises:
        UserError: Optuna cannot search a space.
    """
    typed = [f"{key}={value}" for key, value in params.items()] + list(arguments)
    space, fixed = {}, {}
    for override in OverridesParser.create().parse_overrides(typed):
        key = override.get_key_element()
        space.pop(key, None), fixed.pop(key, None)
        if override.is_sweep_override():
            space[key] = _distribution(override)
        else:
            fixed[key] = f"{key}={override.get_value_element_as_str()}"
    if not space:
        raise UserError("nothing to search: give at least one key a space, such as model.latent_dim=2,8,32")
    return space, list(fixed.values())


def _distribution(override: Override) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if isinstance(sweep, ChoiceSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    try:
        if isinstance(sweep, RangeSweep):
            values = list(override.sweep_iterator())
            whole = all(isinstance(value, int) for value in values)
            kind = IntDistribution if whole else FloatDistribution
            return kind(values[0], values[-1], step=values[1] - values[0] if len(values) > 1 else 1)
        if isinstance(sweep, IntervalSweep):
            log = "log" in sweep.tags
            if "int" in sweep.tags:
                return IntDistribution(int(sweep.start), int(sweep.end), log=log)
            return FloatDistribution(float(sweep.start), float(sweep.end), log=log)
    except (ValueError, IndexError) as error:
        raise UserError(f"{override.input_line}: no space to search ({error})") from error
    raise UserError(f"{override.input_line}: Optuna cannot search that; use choice, range or interval")


def _typed(value: Any) -> str:
    """Write a value for the command line; four digits keep the names of folders short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
