"""Other signals that mean what Ctrl-C means."""

import signal
from types import FrameType
from typing import Any


def interrupt_on(*numbers: signal.Signals) -> dict[signal.Signals, Any]:
    """Take these signals as Ctrl-C, but for those that are to be ignored (nohup); what they did before."""
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, _interrupt) for number in heard}


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
