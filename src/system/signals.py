"""Signals: those that are handled like Ctrl-C, and the alarm of a time limit."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from src.system.errors import UserError


def interrupt_on(*numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """Handle signals like Ctrl-C, except ignored ones (nohup); return the previous handlers."""
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, _interrupt) for number in handled}


def stop_interrupting() -> None:
    """Restore the default handlers, for a trainer that installs its own and saves first."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def status_of(stop: KeyboardInterrupt) -> int:
    """Return the exit status after a signal, as shells define it: 130 for Ctrl-C and 143 for SIGTERM."""
    return 128 + (stop.args[0] if stop.args else signal.SIGINT)


class _TooLong(BaseException):
    """Derives from BaseException so that no library catches it."""


@contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Raise a UserError if the block takes longer; without effect outside the main thread, which gets no signals.

    Python handles signals between its instructions, and also during a search for a regular expression.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, end)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _TooLong:
        raise UserError(message) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining, interval)
        signal.signal(signal.SIGALRM, before)
