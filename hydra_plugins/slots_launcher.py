"""Launch points with :mod:`src.sweeps.slots`; Hydra finds plugins in ``hydra_plugins`` only."""

import contextlib
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from src.sweeps.plan import plan_in
from src.sweeps.points import Point, program_of
from src.sweeps.slots import Slot, run_all, slots_here
from src.system.contents import METRICS
from src.system.errors import UserError
from src.system.explain import explain
from src.system.files import as_typed
from src.system.processes import Cold
from src.system.signals import status_of
from src.system.warm import forking

# Modules that a training imports.
TRAINING = (
    "torch._dynamo",
    "src.runs.record",
    "src.runs.folder",
    "src.evaluation.likelihood",
    "src.data.arrays",
    "src.data.folder",
    "src.models.vae",
    "src.networks.conv",
    "src.networks.lstm",
)


class SlotsLauncher(Launcher):
    """Run every point in its own process, as many at a time as the machine has slots.

    Args:
        slots: number of slots; None for one a group of GPUs (times ``per_gpu``), or one a processor without GPUs.
        per_gpu: number of points that share a GPU.
        threads: number of threads of each process; None divides the processors.
        warm: fork the points from one process that has imported what a training needs, instead of starting a new
            interpreter for each. Linux only: system libraries of macOS do not survive a fork.
    """

    def __init__(
        self, slots: int | None = None, per_gpu: int = 1, threads: int | None = None, warm: bool = True
    ) -> None:
        self.slots = slots
        self.per_gpu = per_gpu
        self.threads = threads
        self._starter = forking(TRAINING) if warm else Cold()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra passes."""
        self.context = hydra_context
        self.config = config

    @property
    def width(self) -> int:
        """Return the number of points that run at a time."""
        return len(self._slots)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the points; return for each the value it is compared by, None where it failed."""
        sweep = Path(self.config.hydra.sweep.dir)
        try:
            plan, program = plan_in(sweep), program_of(self.config.hydra)
            points = [
                Point(sweep, plan, overrides, number, program, self._starter)
                for number, overrides in enumerate(job_overrides, initial_job_idx)
            ]
            distinct = {point.folder: point for point in points}  # a search may suggest one twice
            run_all(list(distinct.values()), self._slots)
        except (UserError, OSError) as error:
            sys.exit(f"error: {explain(error) or error}")
        except KeyboardInterrupt as stop:
            with contextlib.suppress(OSError):  # the terminal may be closed
                print("error: interrupted; repeat the command to go on", file=sys.stderr)
                if any(sweep.glob(f"*/{METRICS}")):
                    report = f"python -m src.report {as_typed('folder', sweep)}"
                    print(f"Report on the finished points: {report}", file=sys.stderr)
            sys.exit(status_of(stop))
        return [_job_return(distinct[point.folder]) for point in points]

    @functools.cached_property
    def _slots(self) -> list[Slot]:
        plan = plan_in(Path(self.config.hydra.sweep.dir))
        return slots_here(self.config, plan, self.slots, self.per_gpu, self.threads)


def _job_return(point: Point) -> JobReturn:
    job = JobReturn(overrides=point.record.overrides, working_dir=str(point.folder), task_name=point.name)
    job.return_value = point.value
    job.status = JobStatus.COMPLETED  # Hydra would stop at a failed one; they are counted at the end
    return job
