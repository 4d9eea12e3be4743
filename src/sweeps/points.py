"""One point of a sweep: a training in its own process and folder, and the record of how it ended.

The process is the command a user would type, so nothing is shared with other points and DDP starts as it always does.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src.errors import DIVERGED, UserError
from src.files import whole_file
from src.sweeps.plan import Plan, point_name

log = logging.getLogger(__name__)

RECORD, OUTPUT, LOCK = "point.json", "output.log", ".lock"
LEFT_BY_A_RUN = (".hydra", "checkpoints", "tensorboard", "figures", "train.log", OUTPUT)
GRACE = 30.0  # seconds a training has to end itself after Ctrl-C
# What concerns the sweep and not its points.
OF_THE_SWEEP = ("hydra.mode", "hydra.sweep", "hydra/sweeper", "hydra.run.dir", "hydra.launcher", "hydra/launcher")

Status = Literal["waiting", "running", "finished", "failed", "interrupted"]


@dataclass
class Record:
    """How a point stands; ``point.json`` in its folder.

    Attributes:
        overrides: its command line without the sweep's own keys.
        number: its place in the grid, from 0.
        status: ``running`` also for a point whose process was killed without a word.
        error: why it failed, in one line.
        diverged: whether its loss was no longer a number.
        attempts: how often it was started.
        seconds: of the last attempt, imports included.
        began: when that was, in seconds since 1970.
        pid: its process.
    """

    overrides: list[str]
    number: int = 0
    status: Status = "waiting"
    error: str | None = None
    diverged: bool = False
    attempts: int = 0
    seconds: float = 0.0
    began: float = 0.0
    pid: int | None = None

    @classmethod
    def load(cls, folder: Path) -> "Record | None":
        """The record in a folder; None where there is none that can be read."""
        try:
            return cls(**json.loads((folder / RECORD).read_text()))
        except (OSError, ValueError, TypeError):
            return None


class Point:
    """A point that can be begun, watched and stopped.

    Args:
        sweep: the sweep's folder.
        plan: what is swept.
        overrides: the point's own, without ``hydra.``.
        number: its place in the grid.
        program: the training command up to its overrides; see :func:`program_of`.
    """

    def __init__(self, sweep: Path, plan: Plan, overrides: Sequence[str], number: int, program: Sequence[str]) -> None:
        overrides = [override for override in overrides if not override.startswith("sweep=")]
        self.folder = sweep / point_name(overrides, plan.swept)
        self.record = Record(overrides, number)
        self._command = [*program, *overrides, f"hydra.run.dir={quoted(self.folder)}", "hydra.mode=RUN"]
        self._process: subprocess.Popen | None = None
        self._lock: IO[str] | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def metrics(self) -> dict[str, Any]:
        """What the training left; empty until then."""
        try:
            return json.loads((self.folder / "metrics.json").read_text())
        except (OSError, ValueError):
            return {}

    @property
    def value(self) -> float | None:
        """Best monitored value; NaN for a training that diverged, None for one that failed otherwise."""
        if self.record.status == "finished":
            return next(iter(self.metrics.get("best", {}).values()), None)
        return float("nan") if self.record.diverged else None

    def finished_before(self) -> bool:
        """Whether this very point was finished by an earlier command."""
        then = Record.load(self.folder)
        if then is None or not self.metrics or sorted(then.overrides) != sorted(self.record.overrides):
            return False
        if then.status != "finished" and (self.folder / "metrics.json").stat().st_mtime < then.began:
            return False  # they are of an earlier attempt, which was to go on
        self.record = Record(**{**asdict(then), "number": self.record.number, "status": "finished", "error": None})
        self._write()
        return True

    def begin(self, env: Mapping[str, str]) -> bool:
        """Start its process: a resume where an epoch was completed, else from the beginning.

        Args:
            env: variables that the process gets besides those of this one.

        Returns:
            False where that cannot be: another process works on it, or its folder holds something else.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / LOCK, "w")  # noqa: SIM115 (held until the point has ended)
        try:
            # The point's own processes inherit it, so it is held for as long as any of them lives.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._end("failed", "another process is working on it: stop that, or wait for it")
            return False
        then = Record.load(self.folder)
        self.record.attempts = (then.attempts if then else 0) + 1
        resume = (self.folder / "checkpoints" / "last.ckpt").is_file()
        if self.metrics and not resume:
            self._end("failed", "its folder holds a run with other settings: give this sweep another hydra.sweep.dir")
            return False
        if not resume:
            self._clear()
        with open(self.folder / OUTPUT, "w") as output:
            self._process = subprocess.Popen(
                [*self._command, *(["ckpt_path=last"] if resume else [])],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes through stop(), to all processes of the point
                pass_fds=(self._lock.fileno(),),
            )
        self.record.status, self.record.began, self.record.pid = "running", time.time(), self._process.pid
        self._write()
        return True

    def ended(self) -> bool:
        """Look whether its process has ended; if so the record says how."""
        code = self._process.poll()
        if code is None:
            return False
        self._signal(signal.SIGKILL)  # of its DDP ranks, none may outlive it
        if code == 0 and self.metrics:
            self._end("finished")
        else:
            self.record.diverged = code == DIVERGED
            self._end("failed", self._reason(code))
        return True

    def wait(self) -> None:
        """Until it has ended; stopped with us if we are interrupted."""
        try:
            self._process.wait()
        except BaseException:
            self.ask_to_stop()
            self.stop(time.monotonic() + GRACE)
            raise
        self.ended()

    def ask_to_stop(self) -> None:
        """Interrupt its processes, as Ctrl-C does."""
        self._signal(signal.SIGINT)

    def stop(self, deadline: float) -> None:
        """Wait until it has stopped, kill what is left of it at ``deadline`` (of ``time.monotonic``)."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        self._signal(signal.SIGKILL)
        if self._process.wait() == 0 and self.metrics:
            self._end("finished")
        else:
            self._end("interrupted")

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _end(self, status: Status, error: str | None = None) -> None:
        self.record.status, self.record.error = status, error
        if self._process is not None:
            self.record.seconds = round(time.time() - self.record.began, 1)
            self._write()
        self._lock.close()

    def _write(self) -> None:
        with whole_file(self.folder / RECORD) as file:
            file.write_text(json.dumps(asdict(self.record), indent=2) + "\n")

    def _clear(self) -> None:
        """Remove what an attempt left that completed no epoch."""
        for name in LEFT_BY_A_RUN:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _reason(self, code: int) -> str:
        """Why the process failed, from the end of its output."""
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        lines = (self.folder / OUTPUT).read_text(errors="replace").splitlines()[-200:]
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        said = [line.strip() for line in lines if line.strip()]
        return (told or said or [f"exit status {code}"])[-1]


def run_here() -> float | None:
    """Run the point that another engine (joblib, submitit, Ray) has brought to this process; its value.

    Also on a machine of a SLURM cluster: there Lightning is not to take the engine's one task for a DDP rank.
    """
    hydra = HydraConfig.get()
    sweep = Path(hydra.sweep.dir)
    point = Point(sweep, plan_in(sweep), hydra.overrides.task, hydra.job.num, program_of(hydra))
    if not point.finished_before() and point.begin({"SLURM_JOB_NAME": "bash"} if "SLURM_JOB_ID" in os.environ else {}):
        point.wait()
    ended = point.record.status + (f": {point.record.error}" if point.record.error else "")
    log.info("%s %s", point.name, ended)
    return point.value


def program_of(hydra: DictConfig) -> list[str]:
    """The training command up to its overrides, with the Hydra options that the sweep was started with."""
    elsewhere = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    flags = [word for path in elsewhere for word in ("--config-dir", path)]
    options = [override for override in hydra.overrides.hydra if not override.startswith(OF_THE_SWEEP)]
    return [sys.executable, "-m", "src.train", "--config-name", hydra.job.config_name, *flags, *options]


def plan_in(sweep: Path) -> Plan:
    """The plan of the sweep that this process serves.

    Raises:
        UserError: its folder cannot be seen from here.
    """
    plan = Plan.load(sweep)
    if plan is None:
        raise UserError(f"there is no {sweep}/sweep.json: the sweep's folder must be on a disk that all machines share")
    return plan


def quoted(path: Path) -> str:
    """A path as the value of an override: Hydra reads a backslash as one, but before a quote."""
    escaped = re.sub(r"(\\*)(\'|$)", lambda m: 2 * m[1] + (r"\'" if m[2] else ""), str(path))
    return f"'{escaped}'"


def is_locked(folder: Path) -> bool:
    """Whether a process works on the point in ``folder``."""
    try:
        with open(folder / LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def records(sweep: Path) -> list[Record]:
    """How all points of a sweep stand."""
    found = (Record.load(path.parent) for path in sweep.glob(f"*/{RECORD}"))
    return [record for record in found if record is not None]
