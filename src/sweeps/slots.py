"""As many points at a time as this machine has slots: its GPUs, or its processors, divided among them."""

import contextlib
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from src.console import duration
from src.errors import UserError
from src.interrupts import interrupt_on
from src.sweeps.gpus import INSTANCE
from src.sweeps.points import GRACE, Point
from src.system.keys import require

Slot = dict[str, str]  # the variables that pin a process to its part of the machine
LOOK_EVERY = 0.2  # seconds
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
    """What each slot's process gets to see of the machine.

    Args:
        accelerator: ``trainer.accelerator`` of the points.
        devices: ``trainer.devices`` of the points: GPUs, or processes on a CPU, that each of them takes.
        gpus: names of the GPUs here, see :func:`src.sweeps.gpus.visible_gpus`.
        processors: how many there are here.
        slots: how many slots; None for one a group of GPUs (times ``per_gpu``), or one a processor without them.
        per_gpu: points that share a GPU.
        threads: of each process; None divides the processors.

    Raises:
        UserError: there is no such machine here.
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
        # CUDA shows a process one instance at most.
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


def run_all(points: Sequence[Point], slots: Sequence[Slot]) -> None:
    """Run what is not finished yet, a point a slot; failed ones do not stop the others.

    Raises:
        KeyboardInterrupt: on Ctrl-C, SIGTERM or a closed terminal, once all processes have stopped.
    """
    waiting = deque(point for point in points if not point.finished_before())
    free, running = deque(slots), {}
    handlers = interrupt_on(signal.SIGTERM, signal.SIGHUP)
    board = Board(points, min(len(slots), max(1, len(waiting))))
    patience = time.monotonic() + GRACE  # for what is left of a sweep that was killed a moment ago
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
            time.sleep(LOOK_EVERY)
    except BaseException:
        stop_all(running)
        raise
    finally:
        board.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def stop_all(running: Iterable[Point]) -> None:
    """Interrupt all, give them the same time to end, kill the rest. A second Ctrl-C waits no longer."""
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
        except OSError:  # a full disk: the record stays behind, the process does not
            continue


class Board:
    """The one line that says how a sweep stands; without a terminal, a line a point.

    A terminal or a pipe that is closed takes the words, not the sweep.

    Args:
        points: all of them.
        slots: how many run at a time.
    """

    def __init__(self, points: Sequence[Point], slots: int) -> None:
        self._points = points
        self._slots = slots
        self._line = tqdm(total=0, bar_format="{desc}", disable=None, leave=False, file=sys.stdout)
        before = sum(p.record.status == "finished" for p in points)
        if before:
            self.say(f"{before} of {len(points)} points were finished before")
        if before < len(points):
            self.say(f"{len(points) - before} points, {slots} at a time, into {points[0].folder.parent}")

    def show(self) -> None:
        """Bring the line up to date."""
        if not self._line.disable:
            with contextlib.suppress(OSError, ValueError):
                self._line.set_description_str(self.standing())

    def tell(self, point: Point) -> None:
        """A point has ended: worth a line where there is no terminal, or where it failed."""
        value = "" if point.value is None else f", {point.value:.4f}"
        error = f": {point.record.error}" if point.record.error else ""
        if self._line.disable or point.record.status == "failed":
            self.say(f"{point.name} {point.record.status}{value}{error} [{self.standing()}]")

    def say(self, text: str) -> None:
        """A line above the line."""
        with contextlib.suppress(OSError, ValueError):
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def standing(self) -> str:
        """``3 of 8 done, 2 running, 1 failed, about 4 min left``."""
        count = {status: 0 for status in ("finished", "running", "failed")}
        for point in self._points:
            if point.record.status in count:
                count[point.record.status] += 1
        text = f"{count['finished']} of {len(self._points)} done, {count['running']} running, {count['failed']} failed"
        left = self._seconds_left()
        return text + (f", about {duration(left)} left" if left else "")

    def _seconds_left(self) -> float | None:
        """From what points took so far; None while that is not known."""
        took = [p.record.seconds for p in self._points if p.record.status == "finished"]
        if not took:
            return None
        mean, now = sum(took) / len(took), time.time()
        going = [now - p.record.began for p in self._points if p.record.status == "running"]
        waiting = sum(p.record.status == "waiting" for p in self._points)
        return (mean * waiting + sum(max(0.0, mean - spent) for spent in going)) / self._slots

    def close(self) -> None:
        """The line goes."""
        with contextlib.suppress(OSError, ValueError):
            self._line.close()
