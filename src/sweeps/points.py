"""A point of a sweep: a training in its own process and folder, and the record of how it ended.

The process runs the command that a user would type, so points share nothing and DDP starts as usual.
"""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.runs.frozen import other_setting
from src.sweeps.plan import Plan, plan_in, point_name
from src.sweeps.reasons import reason
from src.sweeps.status import Record, Status, compared, read_metrics
from src.system.contents import BEFORE, LOG, METRICS, OUTPUT, POINT, RUN_CONTENTS
from src.system.errors import DISK_FULL, DIVERGED, UserError
from src.system.files import quoted, refuse_links_out, remove_unfinished
from src.system.locks import HELD, lock
from src.system.processes import Cold, Process, Starter

log = logging.getLogger(__name__)

LEFT_BY_A_RUN = (".hydra", "checkpoints", "tensorboard", "figures", LOG, OUTPUT)
GRACE = 30.0  # seconds that a training has to stop after Ctrl-C
# Options of the sweep that its points do not get.
OF_THE_SWEEP = ("hydra.mode", "hydra.sweep", "hydra/sweeper", "hydra.run.dir", "hydra.launcher", "hydra/launcher")


class Point:
    """A point that can be started, watched and stopped.

    Args:
        sweep: folder of the sweep.
        plan: plan of the sweep.
        overrides: overrides of the point, without those of ``hydra.``.
        number: its place in the grid.
        program: the training module and its options, before the overrides; see :func:`program_of`.
        starter: how its process is started.
    """

    def __init__(
        self,
        sweep: Path,
        plan: Plan,
        overrides: Sequence[str],
        number: int,
        program: Sequence[str],
        starter: Starter | None = None,
    ) -> None:
        overrides = [override for override in overrides if not override.startswith("sweep=")]
        self.folder = sweep / point_name(overrides, plan.swept)
        self.record = Record(overrides, number)
        self._command = [*program, *overrides, f"hydra.run.dir={quoted(self.folder)}", "hydra.mode=RUN"]
        self._starter = starter or Cold()
        self._process: Process | None = None
        self._lock: IO[str] | None = None
        self.busy = False  # whether another process held its folder when it was to start

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def metrics(self) -> dict[str, Any]:
        """Contents of ``metrics.json``; empty until the training has finished."""
        return read_metrics(self.folder)

    @property
    def value(self) -> float | None:
        """Value of the metric it is compared by; NaN for a training that diverged, None if it failed otherwise."""
        if self.record.status == "finished":
            return compared(self.metrics)[1]
        return float("nan") if self.record.diverged else None

    def finished_before(self) -> bool:
        """Return whether an earlier command finished this point with the same overrides; update its record then."""
        former = Record.load(self.folder)
        if former is None or not self.metrics or sorted(former.overrides) != sorted(self.record.overrides):
            return False
        self.record = Record(**{**asdict(former), "number": self.record.number, "status": "finished", "error": None})
        self.record.save(self.folder)
        return True

    def begin(self, env: Mapping[str, str]) -> bool:
        """Start its process; it resumes where an epoch was completed, else it starts from the beginning.

        Args:
            env: variables that the process gets in addition to those of this one.

        Returns:
            Whether it runs now. If not, another process has finished it or is working on it (``busy``), or it failed:
            the record says which.
        """
        self.busy = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            refuse_links_out(self.folder, RUN_CONTENTS)
            self._lock = lock(self.folder, patience=0.1)  # its process inherits the lock and holds it until it ends
        except UserError as error:
            return self._refuse(str(error))
        except BlockingIOError:
            self.busy = True
            return self._refuse("another process is working on it: stop that, or wait for it")
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            return self._refuse(f"{error.strerror}: {error.filename}")
        remove_unfinished(self.folder)
        if self.finished_before():
            self._unlock()
            return False
        return self._start(env)

    def _start(self, env: Mapping[str, str]) -> bool:
        """Start the process after locking the folder."""
        former = Record.load(self.folder)
        resume = any((self.folder / "checkpoints" / f"{name}.ckpt").is_file() for name in ("last", "best"))
        if former is not None and (resume or self.metrics):
            other = other_setting(_pairs(former.overrides), _pairs(self.record.overrides))
            if other is not None or not resume:
                what = f"another {other}" if other else "other settings and no checkpoint to go on from"
                return self._refuse(f"its folder holds a run with {what}: give this sweep another hydra.sweep.dir")
        self.record.attempts = (former.attempts if former else 0) + 1
        if resume and self.metrics:  # it trains longer: the old metrics must not count as its result if that fails
            (self.folder / METRICS).replace(self.folder / BEFORE)
        if not resume:
            self._clear()
        module, *words = [*self._command, *(["ckpt_path=last"] if resume else [])]
        with open(self.folder / OUTPUT, "w") as output:
            try:
                environment = {**os.environ, **env, HELD: str(self.folder.resolve())}
                kept = [] if self._lock is None else [self._lock.fileno()]
                self._process = self._starter.start(module, words, environment, output, kept)
            except ChildProcessError as error:
                self._refuse(str(error))
                self.record.save(self.folder)
                return False
        self.record.status, self.record.error = "running", None
        self.record.began, self.record.pid = time.time(), self._process.pid
        self.record.save(self.folder)
        return True

    def _refuse(self, why: str) -> bool:
        """Record that it failed before it started; leave the folder as it is."""
        self.record.status, self.record.error = "failed", why
        self._unlock()
        return False

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def ended(self) -> bool:
        """Return whether its process has ended; the record then says how."""
        code = self._process.poll()
        if code is None:
            return False
        self._signal(signal.SIGKILL)  # no DDP rank may outlive it
        if self.metrics:
            self._end("finished")
        else:
            self.record.diverged = code == DIVERGED
            self._end("failed", reason(code, (self.folder / OUTPUT).read_text(errors="replace")))
        return True

    def wait(self) -> None:
        """Wait until it has ended; stop it if this process is interrupted."""
        try:
            self._process.wait()
        except BaseException:
            self.ask_to_stop()
            self.stop(time.monotonic() + GRACE)
            raise
        self.ended()

    def ask_to_stop(self) -> None:
        """Send SIGINT to its processes, as Ctrl-C does."""
        self._signal(signal.SIGINT)

    def stop(self, deadline: float) -> None:
        """Wait until it has stopped, and kill it at ``deadline`` (seconds of ``time.monotonic``)."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._end("finished" if self.metrics else "interrupted")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _end(self, status: Status, error: str | None = None) -> None:
        self.record.status, self.record.error = status, error
        self.record.seconds = round(time.time() - self.record.began, 1)
        self.record.save(self.folder)
        self._unlock()

    def _clear(self) -> None:
        """Remove the files of an attempt that completed no epoch."""
        for name in LEFT_BY_A_RUN:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def run_here() -> float | None:
    """Run the point that another launcher (joblib, submitit, Ray) passed to this process and return its value.

    On a SLURM cluster, SLURM_JOB_NAME=bash keeps Lightning from taking the launcher's task for a DDP rank.
    """
    hydra = HydraConfig.get()
    sweep = Path(hydra.sweep.dir)
    point = Point(sweep, plan_in(sweep), hydra.overrides.task, hydra.job.num, program_of(hydra))
    if not point.finished_before() and point.begin({"SLURM_JOB_NAME": "bash"} if "SLURM_JOB_ID" in os.environ else {}):
        point.wait()
    outcome = point.record.status + (f": {point.record.error}" if point.record.error else "")
    log.info("%s %s", point.name, outcome)
    return point.value


def program_of(hydra: DictConfig) -> list[str]:
    """Return the training module and the Hydra options that the sweep was started with."""
    elsewhere = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    flags = [word for path in elsewhere for word in ("--config-dir", path)]
    options = [override for override in hydra.overrides.hydra if not override.startswith(OF_THE_SWEEP)]
    return ["src.train", "--config-name", hydra.job.config_name, *flags, *options]


def _pairs(overrides: Sequence[str]) -> dict[str, str]:
    return dict(override.partition("=")[::2] for override in overrides)


class Missing(NamedTuple):
    """Points of a sweep's command that have no result."""

    failed: int  # or not begun: the same command tries them again
    diverged: int  # the same settings diverge again


def missing(sweep: Path, plan: Plan) -> Missing:
    """Count the points of the sweep's command that have no result.

    To a search a point that diverged is a result: it learns from it.
    """
    if plan.points:
        points = [Point(sweep, plan, overrides, number, []) for number, overrides in enumerate(plan.points)]
        records = [Record.load(point.folder) for point in points if not point.finished_before()]
    else:
        every = [Record.load(path.parent) for path in sweep.glob(f"*/{POINT}")]
        records = [r for r in every if r is None or (r.status == "failed" and not r.diverged)]
    diverged = sum(record is not None and record.diverged for record in records)
    return Missing(len(records) - diverged, diverged)
