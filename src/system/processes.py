"""Start a command in a process of its own: the interface of both ways to do it, and the one with a new interpreter.

The other way forks the process, see :mod:`src.system.warm`. Either way a command has a session, an environment and an
output of its own, reacts to Ctrl-C, and on Linux ends with the process that started it.
"""

import ctypes
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any, Protocol

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork
PR_SET_PDEATHSIG = 1


class Process(Protocol):
    """A started command: the part of ``subprocess.Popen`` that both ways have."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the process runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once the process has ended.

        Raises:
            subprocess.TimeoutExpired: it still runs after ``timeout`` seconds.
        """


class Starter(Protocol):
    """A way to start commands."""

    def start(
        self, module: str, words: Sequence[str], env: Mapping[str, str], output: IO, keep: Sequence[int] = ()
    ) -> Process:
        """Start ``python -m module words``.

        Args:
            module: the entry point.
            words: its arguments.
            env: the whole environment.
            output: takes stdout and stderr.
            keep: descriptors that stay open in the process for as long as it lives.
        """


class Cold:
    """Start each command in a new interpreter."""

    def start(
        self, module: str, words: Sequence[str], env: Mapping[str, str], output: IO, keep: Sequence[int] = ()
    ) -> subprocess.Popen:
        """As :meth:`Starter.start` says."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the starter passes Ctrl-C on, to all processes of the session
            pass_fds=tuple(keep),
            preexec_fn=_prepare,  # noqa: PLW1509 (it makes two system calls)
        )


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background job of a shell ignores it
    end_with_parent()


def end_with_parent() -> None:
    """Let Linux send SIGTERM to this process when its parent ends; elsewhere it may outlive a killed parent."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def wait_readable(channels: Sequence[Any], timeout: float | None = None) -> list[Any]:
    """Return the descriptors or sockets that can be read, after at most ``timeout`` seconds.

    ``select.select`` would refuse descriptors of 1,024 and above.
    """
    poll = select.poll()
    numbers = {channel if isinstance(channel, int) else channel.fileno(): channel for channel in channels}
    for number in numbers:
        poll.register(number, select.POLLIN)
    return [numbers[number] for number, _ in poll.poll(None if timeout is None else 1000 * timeout)]
