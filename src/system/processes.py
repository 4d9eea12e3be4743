"""Processes that run a command: started anew, or forked from one that has imported already what the command needs.

Importing torch and Lightning takes longer than many a training. :class:`Warm` pays for it once. Either way a command
has a process, a session, an environment and an output of its own, hears Ctrl-C, and ends with the process that started
it.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import logging
import multiprocessing.util
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import IO, Any, NoReturn, Protocol

from src.system.machine import processors

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # before any fork
PR_SET_PDEATHSIG = 1
GRACE = 2.0  # seconds that a server has to end
MOST_DESCRIPTORS = 16  # that one request may hand over


class Process(Protocol):
    """What can be asked of a started command; the part of ``subprocess.Popen`` that both ways have."""

    pid: int

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, once it has ended; raise ``subprocess.TimeoutExpired`` after ``timeout`` seconds."""


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
            keep: descriptors that the process holds for as long as it lives.
        """


class Cold:
    """Starts each command in a new interpreter."""

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
            start_new_session=True,  # Ctrl-C comes from whoever started it, to all processes of the session
            pass_fds=tuple(keep),
            preexec_fn=_listen,  # noqa: PLW1509 (it makes two system calls)
        )


class Warm:
    """Forks each command from a server: one more process, which has imported ``modules`` and does nothing else.

    The server starts no thread and touches no GPU, so that nothing of that kind crosses the fork. It is started with
    the first command and ends with this object or this process. The number of threads follows ``OMP_NUM_THREADS`` of
    each command, as it would in a new interpreter. The thread that starts the first command must outlive them all.

    Args:
        modules: what the commands will need.

    Raises:
        ChildProcessError: from :meth:`start`, where the server ended instead of starting the command.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules
        self._server: subprocess.Popen | None = None
        self._door: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The server; None before the first command."""
        return self._server and self._server.pid

    def start(
        self, module: str, words: Sequence[str], env: Mapping[str, str], output: IO, keep: Sequence[int] = ()
    ) -> "Forked":
        """As :meth:`Starter.start` says."""
        if self._server is None or self._server.poll() is not None:
            self._open()
        ours, theirs = socket.socketpair()
        try:
            with theirs, contextlib.suppress(BrokenPipeError):  # the server has just ended: Forked says so
                socket.send_fds(self._door, [b"."], [theirs.fileno(), output.fileno(), *keep])
                request = {"module": module, "words": [*words], "env": dict(env), "cwd": os.getcwd()}
                ours.sendall(json.dumps(request).encode() + b"\n")
            return Forked(ours)
        except BaseException:  # nobody waits for the command: it leaves when it sees that
            ours.close()
            raise

    def _open(self) -> None:
        self.close()
        self._door, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *self._modules],
                # OpenBLAS alone starts its threads when it is loaded; a command sets their number, see _use_threads.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
                preexec_fn=_end_with_parent,  # noqa: PLW1509 (it makes one system call)
            )

    def close(self) -> None:
        """End the server, and with it what it has started."""
        if self._server is not None:
            self._door.close()
            try:
                self._server.wait(GRACE)
            except subprocess.TimeoutExpired:  # it still imports
                self._server.kill()
                self._server.wait()
            self._server = None


class Forked:
    """A command that a :class:`Warm` server has forked.

    Args:
        wire: first brings the process's number, then its exit status.
    """

    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire.makefile("rb")
        self._socket = wire
        first = self._line()
        if not first:
            raise ChildProcessError(
                "the process that forks commands cannot do that, or has ended: its own output says why"
            )
        self.pid = int(first)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """As :meth:`Process.poll` says."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """As :meth:`Process.wait` says."""
        if self.returncode is None:
            if not _readable([self._socket], timeout):
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            # Without a word the server was killed, and the command with it.
            self.returncode = int(self._line() or -signal.SIGKILL)
            self._wire.close()
            self._socket.close()
        return self.returncode

    def _line(self) -> bytes:
        try:
            return self._wire.readline()
        except ConnectionResetError:
            return b""


def forking(modules: Sequence[str]) -> Starter:
    """The warm way where processes survive a fork; on macOS system libraries do not."""
    return Warm(modules) if sys.platform == "linux" else Cold()


def _readable(channels: Sequence[Any], timeout: float | None = None) -> list[Any]:
    """Those that can be read, after ``timeout`` seconds at most; of any number, which ``select.select`` is not."""
    poll = select.poll()
    numbers = {channel if isinstance(channel, int) else channel.fileno(): channel for channel in channels}
    for number in numbers:
        poll.register(number, select.POLLIN)
    return [numbers[number] for number, _ in poll.poll(None if timeout is None else 1000 * timeout)]


def _listen() -> None:
    """Hear Ctrl-C, also in a background job, and end with the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _end_with_parent()


def _end_with_parent() -> None:
    """On Linux; elsewhere a process may outlive one that was killed without a word."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


# ---- the server ----------------------------------------------------------------------------------------------------


def serve(door: socket.socket) -> socket.socket:
    """Fork a process for each request; return in that process, with its wire. The server itself never returns.

    Args:
        door: brings, with each request, descriptors: the wire, the output, and what is only kept.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    wires: dict[int, socket.socket] = {}
    gc.collect()
    # What the imports have registered for their end is the server's, and would be run in every command.
    atexit._clear()
    weakref.finalize._registry.clear()
    weakref.finalize._registered_with_atexit = False
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    gc.freeze()  # what is imported stays: looking for garbage in it would copy its pages into every process
    while True:
        ready = _readable([door, woken])
        if woken in ready:
            os.read(woken, 4096)
            _report_ended(wires)
        if door not in ready:
            continue
        word, handed, *_ = socket.recv_fds(door, 1, MOST_DESCRIPTORS)
        if not word:
            os._exit(0)  # what still runs hears of it from the kernel
        wire = socket.socket(fileno=handed[0])
        try:
            pid = os.fork()
        except OSError as error:  # no memory, or too many processes: those that run go on
            print(f"cannot fork: {error}", file=sys.stderr, flush=True)
            pid = None
        if pid == 0:
            door.close()
            for other in wires.values():
                other.close()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(woken)
            os.close(wake)
            os.dup2(handed[1], 1)
            os.dup2(handed[1], 2)
            os.close(handed[1])
            return wire
        for descriptor in handed[1:]:
            os.close(descriptor)
        if pid is None:
            wire.close()
        else:
            wires[pid] = wire


def _report_ended(wires: dict[int, socket.socket]) -> None:
    while wires:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if (wire := wires.pop(pid, None)) is not None:  # None: a process that an import has started
            with wire, contextlib.suppress(BrokenPipeError):
                wire.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def become(wire: socket.socket, server: int) -> NoReturn:
    """Turn this process, which ``server`` has forked, into the command that ``wire`` brings: as if it were new."""
    os.setsid()
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with wire, wire.makefile("rb") as lines:
        if os.getppid() != server or not (line := lines.readline()):
            os._exit(1)
        request = json.loads(line)
        try:
            wire.sendall(b"%d\n" % os.getpid())  # from here on it has its session, and can be signalled
        except BrokenPipeError:  # nobody waits any more
            os._exit(1)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    tempfile.tempdir = None  # looked for once, in the server's environment
    sys.stdout = sys.__stdout__ = open(1, "w", 1 if os.isatty(1) else -1, closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    atexit.register(logging.shutdown)
    atexit.register(multiprocessing.util._exit_function)
    _draw_anew()
    _use_threads(request["env"])
    sys.argv = [sys.argv[0], *request["words"]]
    _leave(_status_of(request["module"]))


def _status_of(module: str) -> int:
    """Run a module as ``python -m`` does; its exit status."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, int | None):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1 if isinstance(error, Exception) else 128 + signal.SIGINT
    return 0


def _leave(status: int) -> NoReturn:
    """End as the interpreter does, but take no imported module apart: that would take longer than a short training."""
    threading._shutdown()  # waits for threads, as multiprocessing does with it
    atexit._run_exitfuncs()
    # Files that nobody has closed keep what was written; what was imported is frozen, so there are few to look at.
    for file in [thing for thing in gc.get_objects() if isinstance(thing, io.IOBase)]:
        with contextlib.suppress(OSError, ValueError):
            file.flush()
    os._exit(status & 0xFF)


def _draw_anew() -> None:
    """Random numbers that nobody has seeded differ from process to process, but torch's, which begin alike anyway."""
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()


def _use_threads(env: Mapping[str, str]) -> None:
    """The libraries read these variables when they were loaded; they are told by word of mouth now."""

    def asked(name: str) -> int | None:
        first = env.get(name, "").split(",")[0].strip()
        return int(first) if first.isdecimal() and int(first) > 0 else None

    if (torch := sys.modules.get("torch")) is not None and asked("OMP_NUM_THREADS"):
        torch.set_num_threads(asked("OMP_NUM_THREADS"))
    with contextlib.suppress(ImportError):
        from threadpoolctl import threadpool_limits

        threadpool_limits(asked("OPENBLAS_NUM_THREADS") or asked("OMP_NUM_THREADS") or processors(), user_api="blas")


def main() -> None:
    """Import what the command line names, then serve."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # where stdout was closed, its number is not for others
        pass
    os.close(number)
    door = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    server = os.getpid()
    become(serve(door), server)


if __name__ == "__main__":
    main()
