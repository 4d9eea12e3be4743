"""Start commands by forking a server that has already imported what they need.

Importing torch and Lightning takes longer than many a training; a server pays for it once. This module is the side that
asks for commands, :mod:`src.system.forkserver` is the server.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

from src.system.processes import Cold, Starter, end_with_parent, wait_readable

GRACE = 2.0  # seconds that a server has to end


def forking(modules: Sequence[str]) -> Starter:
    """Return a :class:`Warm` starter on Linux, else a cold one: on macOS, system libraries do not survive a fork."""
    return Warm(modules) if sys.platform == "linux" else Cold()


class Warm:
    """Fork each command from a server: one more process, which has imported ``modules`` and does nothing else.

    The server starts no thread and touches no GPU, because neither survives a fork. It starts with the first command
    and ends with this object or this process. The number of threads follows ``OMP_NUM_THREADS`` of each command, as in
    a new interpreter. The thread that starts the first command must outlive all commands.

    Args:
        modules: what the commands need.

    Raises:
        ChildProcessError: from :meth:`start`, if the server ends instead of starting the command.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules
        self._server: subprocess.Popen | None = None
        self._requests: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the server; None before the first command."""
        return self._server and self._server.pid

    def start(
        self, module: str, words: Sequence[str], env: Mapping[str, str], output: IO, keep: Sequence[int] = ()
    ) -> "Forked":
        """As :meth:`Starter.start` says."""
        if self._server is None or self._server.poll() is not None:
            self._start_server()
        channel, its_end = socket.socketpair()
        try:
            with its_end, contextlib.suppress(BrokenPipeError):  # the server has just ended: Forked reports it
                socket.send_fds(self._requests, [b"."], [its_end.fileno(), output.fileno(), *keep])
                request = {"module": module, "words": [*words], "env": dict(env), "cwd": os.getcwd()}
                channel.sendall(json.dumps(request).encode() + b"\n")
            return Forked(channel)
        except BaseException:
            channel.close()  # the command ends when it sees that
            raise

    def _start_server(self) -> None:
        self.close()
        self._requests, its_end = socket.socketpair()
        with its_end:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "src.system.forkserver", str(its_end.fileno()), *self._modules],
                # Only OpenBLAS starts its threads when it is loaded; each command sets their number again.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(its_end.fileno(),),
                preexec_fn=end_with_parent,  # noqa: PLW1509 (it makes one system call)
            )

    def close(self) -> None:
        """End the server and all commands that it has started."""
        if self._server is not None:
            self._requests.close()
            try:
                self._server.wait(GRACE)
            except subprocess.TimeoutExpired:  # it is still importing
                self._server.kill()
                self._server.wait()
            self._server = None


class Forked:
    """A command that a :class:`Warm` server has forked.

    Args:
        channel: first brings the process id, then the exit status.

    Raises:
        ChildProcessError: the server has not forked.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lines = channel.makefile("rb")
        pid = self._read_line()
        if not pid:
            raise ChildProcessError(
                "the process that forks commands cannot do that, or has ended: its own output says why"
            )
        self.pid = int(pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """As :meth:`Process.poll` says."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As :meth:`Process.wait` says."""
        if self.returncode is None:
            if not wait_readable([self._channel], timeout):
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            # A channel that closes without a status means that the server was killed, and the command with it.
            self.returncode = int(self._read_line() or -signal.SIGKILL)
            self._lines.close()
            self._channel.close()
        return self.returncode

    def _read_line(self) -> bytes:
        try:
            return self._lines.readline()
        except ConnectionResetError:
            return b""
