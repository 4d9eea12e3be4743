"""Run as many points at a time as this machine has slots: groups of its GPUs, or of its processors."""

import contextlib
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig
from tqdm import tqdm

from src.sweeps.gpus import INSTANCE, visible_gpus
from src.sweeps.plan import Plan
from src.sweeps.points import GRACE, Point
from src.sweeps.status import compared
from src.system.console import duration
from src.system.contents import OUTPUT
from src.system.directions import printed
from src.system.errors import UserError
from src.system.keys import require
from src.system.machine import processors
from src.system.signals import interrupt_on

Slot = dict[str, str]  # environment variables that pin a process to its part of the machine
POLL_EVERY = 0.2  # seconds
READ_EVERY = 2.0  # seconds between two readings of the points' output: a disk may be slow
TAIL = 4096  # bytes read at the end of the output: some thirty epochs
MOST_NAMED = 4  # running points whose epochs are shown: the line has to fit a terminal
# A line of src.training.history.EpochLine.
EPOCH = re.compile(r"^epoch (\d+)(?:/(\d+))?(?: \(best\))?  .*  (\d+(?:\.\d+)?) s\b", re.MULTILINE)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def slots_of(
    accelerator: str,
    devices: int | str,
    gpus: Sequence[str],
    processors: int,
    slots: int | None = None,
    per_gpu: int = 1,
    threads: int | None = None,
) -> list[Slot]:
    """Return the variables of each slot.

    Args:
        accelerator: ``trainer.accelerator`` of the points.
        devices: ``trainer.devices`` of the points: GPUs, or processes on a CPU, that each of them takes.
        gpus: names of the GPUs here, see :func:`src.sweeps.gpus.visible_gpus`.
        processors: number of processors of this machine.
        slots: number of slots; None for one a group of GPUs (times ``per_gpu``), or one a processor without them.
        per_gpu: points that share a GPU.
        threads: threads of each process; None divides the processors.

    Raises:
        UserError: this machine lacks the GPUs, or an argument has a wrong value.
    """
    require("hydra.launcher", slots=slots, threads=threads, per_gpu=per_gpu)
    if not str(devices).lstrip("-").isdecimal() and devices != "auto":
        raise UserError(
            f"trainer.devices={devices}: give a number; CUDA_VISIBLE_DEVICES says which GPUs a sweep may use"
        )
    each = 1 if devices == "auto" else max(1, int(devices))
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and bool(gpus))
    pins: list[Slot] = [{}]
    if on_gpu:
        # CUDA shows a process one MIG instance at most.
        whole = [name for name in gpus if each == 1 or not name.startswith(INSTANCE)]
        groups = [whole[i : i + each] for i in range(0, len(whole) - each + 1, each)]
        if not groups:
            here = f"{len(whole)} are here" + (" besides MIG instances" if len(whole) < len(gpus) else "")
            raise UserError(f"trainer.devices={each} GPUs a point, and {here}: choose trainer=cpu")
        pins = [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]
        count = slots or len(pins) * per_gpu
    else:
        count = slots or max(1, processors // each)
    share = threads or max(1, processors // (count * each))
    return [{**pins[i % len(pins)], **dict.fromkeys(THREADS, str(share))} for i in range(count)]


def slots_here(config: DictConfig, plan: Plan, slots: int | None, per_gpu: int, threads: int | None) -> list[Slot]:
    """Return the slots of this machine for a sweep, see :func:`slots_of`.

    Raises:
        UserError: the machine lacks what a point needs, or the sweep varies what divides the machine into slots.
    """
    for key in ("trainer", "trainer.accelerator", "trainer.devices"):
        if key in plan.swept:
            raise UserError(f"{key} cannot be swept: it decides how this machine is divided; give a sweep for each")
    asked = (config.trainer.accelerator, config.trainer.devices)
    gpus = [] if asked[0] == "cpu" else visible_gpus()
    return slots_of(*asked, gpus, processors(), slots, per_gpu, threads)


def run_all(points: Sequence[Point], slots: Sequence[Slot]) -> None:
    """Run the points that are not finished, one in each slot; a point that fails does not stop the others.

    Raises:
        KeyboardInterrupt: on Ctrl-C, SIGTERM or a closed terminal, after all processes have stopped.
    """
    waiting = deque(point for point in points if not point.finished_before())
    free, running = deque(slots), {}
    handlers = interrupt_on(signal.SIGTERM, signal.SIGHUP)
    board = Board(points, min(len(slots), max(1, len(waiting))))
    patience = time.monotonic() + GRACE  # processes of a sweep that was just killed may still hold folders
    try:
        while waiting or running:
            ended = [point for point in running if point.ended()]
            free.extend(running.pop(point) for point in ended)
            for _ in range(min(len(waiting), len(free))):
                point, slot = waiting.popleft(), free.popleft()
                running[point] = slot  # first: an interrupt may come at once
                if not point.begin(slot):
                    free.append(running.pop(point))
                    if point.busy and time.monotonic() < patience:
                        point.record.status = "waiting"
                        waiting.append(point)
                    else:
                        ended.append(point)
            for point in ended:
                board.tell(point)
            board.show()
            time.sleep(POLL_EVERY)
    except BaseException:
        stop_all(running)
        raise
    finally:
        board.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def stop_all(running: Iterable[Point]) -> None:
    """Interrupt all, give them the same time to stop, and kill the rest; a second Ctrl-C kills at once."""
    started = [point for point in running if point.record.status == "running"]
    deadline = time.monotonic() + GRACE
    for point in started:
        point.ask_to_stop()
    for point in started:
        try:
            point.stop(deadline)
        except KeyboardInterrupt:
            deadline = 0.0
            point.stop(deadline)
        except OSError:  # the disk is full: the record cannot be written, but the process has stopped
            continue


class Epochs(NamedTuple):
    """Progress of a training, read from the lines it printed."""

    done: int
    of: int | None  # None where the number of epochs is not limited
    seconds: float  # mean duration of an epoch
    printed_at: float  # seconds since 1970

    def __str__(self) -> str:
        return f"{self.done}" + ("" if self.of is None else f"/{self.of}")

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last epoch has ended (it may stop earlier); None where their number is not limited."""
        if self.of is None:
            return None
        since = min(max(0.0, time.time() - self.printed_at), self.seconds)
        return max(0.0, (self.of - self.done) * self.seconds - since)


def epochs_of(output: Path) -> Epochs | None:
    """Read the progress from the end of a point's output; None where it has no epoch or cannot be read."""
    try:
        with open(output, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines, at = EPOCH.findall(file.read().decode(errors="replace")), os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    if not lines:
        return None
    number, of, _ = lines[-1]
    mean = sum(float(seconds) for *_, seconds in lines) / len(lines)
    return Epochs(int(number), int(of) if of else None, mean, at)


class Board:
    """A status line of the sweep; without a terminal, a line for each point that ends.

    A closed terminal or pipe only silences the output.

    Args:
        points: all points of the sweep.
        slots: number of points that run at a time.
    """

    def __init__(self, points: Sequence[Point], slots: int) -> None:
        self._points = points
        self._slots = slots
        self._progress: dict[Point, Epochs | None] = {}
        self._read_at = -READ_EVERY
        self._mean: float | None = None  # seconds of a point, as far as is known
        self._line = tqdm(total=0, bar_format="{desc}", disable=None, leave=False, file=sys.stdout)
        before = sum(p.record.status == "finished" for p in points)
        if before:
            self.say(f"{before} of {len(points)} points were finished before")
        if before < len(points):
            self.say(f"{len(points) - before} points, {slots} at a time, into {points[0].folder.parent}")

    def show(self) -> None:
        """Update the status line."""
        if not self._line.disable:
            with contextlib.suppress(OSError, ValueError):
                self._line.set_description_str(self.standing())

    def tell(self, point: Point) -> None:
        """Print a line for a point that has ended, if there is no terminal or it failed."""
        value = "" if point.value is None else f", {self._value(point)}"
        error = f": {point.record.error}" if point.record.error else ""
        if self._line.disable or point.record.status == "failed":
            self.say(f"{point.name} {point.record.status}{value}{error} [{self.standing()}]")

    def say(self, text: str) -> None:
        """Print a line above the status line."""
        with contextlib.suppress(OSError, ValueError):
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def _value(self, point: Point) -> str:
        """Write the value of a point as papers print it; ``nan`` if it diverged."""
        metric, names = compared(point.metrics)[0], point.metrics.get("names")
        elbo = str(names.get("elbo", "elbo")) if isinstance(names, dict) else "elbo"
        return printed(metric, point.value, elbo) if metric else f"{point.value:.4f}"

    def standing(self) -> str:
        """Return ``3 of 8 done, 2 running (epochs 4/20, 3/20), 1 failed, about 4 min left``."""
        count = {status: 0 for status in ("finished", "running", "failed")}
        for point in self._points:
            if point.record.status in count:
                count[point.record.status] += 1
        progress = self._epochs()
        shown = [str(epochs) for epochs in progress.values()]
        more = ", ..." if len(shown) > MOST_NAMED else ""
        epochs = f" (epochs {', '.join(shown[:MOST_NAMED])}{more})" if shown else ""
        text = (
            f"{count['finished']} of {len(self._points)} done, {count['running']} running{epochs}, "
            f"{count['failed']} failed"
        )
        left = self._seconds_left(progress)
        return text + ("" if left is None else f", about {duration(left)} left")

    def _epochs(self) -> dict[Point, Epochs]:
        """Return the progress of the running points that printed any; read their output every few seconds."""
        if time.monotonic() - self._read_at > READ_EVERY:
            self._read_at = time.monotonic()
            self._progress = {p: epochs_of(p.folder / OUTPUT) for p in self._points if p.record.status == "running"}
        going = [(point, epochs) for point, epochs in self._progress.items() if point.record.status == "running"]
        return {point: epochs for point, epochs in going if epochs is not None}

    def _seconds_left(self, progress: Mapping[Point, Epochs]) -> float | None:
        """Estimate it from what points took, or from the epochs of running ones.

        None while neither is known, and when nothing is left to do. Once known it stays known: a point whose epochs
        told it may fail, and a last point that is overdue (it is being tested) has 0 seconds left.
        """
        now = time.time()
        spent = {p: now - p.record.began for p in self._points if p.record.status == "running"}
        to_come = {point: epochs.seconds_left for point, epochs in progress.items() if epochs.seconds_left is not None}
        took = [p.record.seconds for p in self._points if p.record.status == "finished"]
        took = took or [spent[point] + left for point, left in to_come.items()]
        waiting = sum(p.record.status == "waiting" for p in self._points)
        if took:
            self._mean = sum(took) / len(took)
        if self._mean is None or not (spent or waiting):
            return None
        going = [to_come.get(point, max(0.0, self._mean - since)) for point, since in spent.items()]
        return (self._mean * waiting + sum(going)) / self._slots

    def close(self) -> None:
        """Remove the status line."""
        with contextlib.suppress(OSError, ValueError):
            self._line.close()
