"""Signals: those that mean what Ctrl-C means, and the alarm that ends what takes too long."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from src.system.errors import UserError


def interrupt_on(*numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """Take these signals as Ctrl-C, but for those that are to be ignored (nohup); what they did before."""
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, _interrupt) for number in heard}


def stop_interrupting() -> None:
    """Leave signals to whoever listens next, such as a trainer that saves first."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def status_of(stop: KeyboardInterrupt) -> int:
    """The exit status of what a signal has ended: as shells have it, 130 for Ctrl-C and 143 for SIGTERM."""
    return 128 + (stop.args[0] if stop.args else signal.SIGINT)


class _TooLong(BaseException):
    """No exception that a library would take for one of its own."""


@contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Raise a UserError where the block takes longer; in the main thread, as others hear no signals.

    Python looks for signals between its own instructions, and so does a search for a regular expression.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, end)
    left, again = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TooLong:
        raise UserError(message) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, again)
        signal.signal(signal.SIGALRM, before)
