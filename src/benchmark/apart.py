"""A part of the benchmark in a process of its own: ``python -m src.benchmark.apart ORDER ANSWER``, two files.

ORDER holds the part and its arguments, ANSWER will hold what it measures, or what the user can mend; both pickled.
"""

import pickle
import signal
import sys
from pathlib import Path
from types import FrameType

from src.system.errors import UserError


def main(order: str, answer: str) -> None:
    """Measure. SIGTERM is heard once: a second one would cut off what the first began to put away."""
    signal.signal(signal.SIGTERM, _interrupt_once)
    part, values = pickle.loads(Path(order).read_bytes())
    try:
        measured = list(part(*values))
    except (UserError, OSError) as error:
        measured = error
    Path(answer).write_bytes(pickle.dumps(measured))


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    main(*sys.argv[1:])
