"""Hydra's door to :mod:`src.sweeps.slots`; Hydra takes plugins from a namespace of this name alone."""

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
from src.system.errors import UserError, explain
from src.system.processes import Cold, forking
from src.system.signals import status_of

# What a training imports on its way to the first step and after it.
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
    """Every point in a process of its own, as many at a time as the machine has slots.

    Args:
        slots: how many; None for one a group of GPUs (times ``per_gpu``), or one a processor without them.
        per_gpu: points that share a GPU.
        threads: of each process; None divides the processors.
        warm: fork the points from one process that has imported what a training needs, instead of starting each
            anew. Only on Linux: on macOS, system libraries do not survive a fork.
    """

    def __init__(
        self, slots: int | None = None, per_gpu: int = 1, threads: int | None = None, warm: bool = True
    ) -> None:
        self.slots = slots
        self.per_gpu = per_gpu
        self.threads = threads
        self._starter = forking(TRAINING) if warm else Cold()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra hands over its state."""
        self.context = hydra_context
        self.config = config

    @property
    def width(self) -> int:
        """Points that run at a time."""
        return len(self._slots)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the points; the value of each is what it is compared by, None where it failed."""
        sweep = Path(self.config.hydra.sweep.dir)
        try:
            plan, program = plan_in(sweep), program_of(self.config.hydra)
            points = [
                Point(sweep, plan, overrides, number, program, self._starter)
                for number, overrides in enumerate(job_overrides, initial_job_idx)
            ]
            different = {point.folder: point for point in points}  # a search may ask for one twice
            run_all(list(different.values()), self._slots)
        except (UserError, OSError) as error:
            sys.exit(f"error: {explain(error) or error}")
        except KeyboardInterrupt as stop:
            with contextlib.suppress(OSError):  # the terminal may be gone
                print("error: interrupted; the same command goes on where this one stopped", file=sys.stderr)
                print(f"What there is so far: python -m src.report folder={sweep}", file=sys.stderr)
            sys.exit(status_of(stop))
        return [_returned(different[point.folder]) for point in points]

    @functools.cached_property
    def _slots(self) -> list[Slot]:
        plan = plan_in(Path(self.config.hydra.sweep.dir))
        return slots_here(self.config, plan, self.slots, self.per_gpu, self.threads)


def _returned(point: Point) -> JobReturn:
    answer = JobReturn(overrides=point.record.overrides, working_dir=str(point.folder), task_name=point.name)
    answer.return_value = point.value
    answer.status = JobStatus.COMPLETED  # a failed one is counted at the end; Hydra would stop here
    return answer
