"""The server of :class:`src.system.warm.Warm`: import modules once, then fork a process for each command.

``python -m src.system.forkserver <descriptor of a socket> <module> ...``. A request is one byte with descriptors (the
command's channel, its output, and those that it only keeps open). The forked process reads the command itself from its
channel, answers with its process id, and becomes the command; when it has ended, the server sends the exit status.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import logging
import multiprocessing.util
import os
import random
import runpy
import signal
import socket
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from typing import NoReturn

from src.system.machine import processors
from src.system.processes import end_with_parent, wait_readable

MOST_DESCRIPTORS = 16  # of one request


def main() -> None:
    """Import what the command line names, then serve."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # a closed stdout's number must not go to another file
        pass
    os.close(number)
    requests = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        importlib.import_module(module)
    server = os.getpid()
    become(serve(requests), server)


# ---- the server ----------------------------------------------------------------------------------------------------


def serve(requests: socket.socket) -> socket.socket:
    """Fork a process for each request; return in that process, with its channel. The server itself never returns."""
    ended, wake = os.pipe()  # readable when a process has ended
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    _forget_what_imports_registered()
    channels: dict[int, socket.socket] = {}
    while True:
        readable = wait_readable([requests, ended])
        if ended in readable:
            os.read(ended, 4096)
            _report_ended(channels)
        if requests not in readable:
            continue
        word, descriptors, *_ = socket.recv_fds(requests, 1, MOST_DESCRIPTORS)
        if not word:
            os._exit(0)  # the kernel ends the commands that still run
        channel, output = socket.socket(fileno=descriptors[0]), descriptors[1]
        pid = _fork()
        if pid == 0:
            for inherited in (requests, *channels.values()):
                inherited.close()
            _stop_serving(ended, wake, output)
            return channel
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        if pid is None:
            channel.close()
        else:
            channels[pid] = channel


def _forget_what_imports_registered() -> None:
    """Drop exit handlers, which every command would run, and buffered output, which every command would write."""
    gc.collect()
    atexit._clear()
    weakref.finalize._registry.clear()
    weakref.finalize._registered_with_atexit = False
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    gc.freeze()  # a garbage collection that visits imported objects copies their pages into the process


def _fork() -> int | None:
    """Fork; return None if the system cannot, because of memory or too many processes."""
    try:
        return os.fork()
    except OSError as error:
        print(f"cannot fork: {error}", file=sys.stderr, flush=True)
        return None


def _stop_serving(ended: int, wake: int, output: int) -> None:
    """Undo in a forked process what the server has set up, and send stdout and stderr to ``output``."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.close(ended)
    os.close(wake)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def _report_ended(channels: dict[int, socket.socket]) -> None:
    """Send the exit statuses of the commands that have ended."""
    while channels:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if (channel := channels.pop(pid, None)) is not None:  # None: a process that an import has started
            with channel, contextlib.suppress(BrokenPipeError):
                channel.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


# ---- the forked process --------------------------------------------------------------------------------------------


def become(channel: socket.socket, server: int) -> NoReturn:
    """Turn this process, which ``server`` has forked, into the command that ``channel`` brings, as if it were new."""
    os.setsid()
    end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    request = _received(channel, server)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    tempfile.tempdir = None  # it was derived from the server's environment
    sys.stdout = sys.__stdout__ = open(1, "w", 1 if os.isatty(1) else -1, closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    atexit.register(logging.shutdown)
    atexit.register(multiprocessing.util._exit_function)
    _seed_randomly()
    _set_threads(request["env"])
    sys.argv = [sys.argv[0], *request["words"]]
    _exit(_run(request["module"]))


def _received(channel: socket.socket, server: int) -> dict:
    """Read the command and answer with the process id; end the process if nobody waits for it any more."""
    with channel, channel.makefile("rb") as lines:
        if os.getppid() != server or not (line := lines.readline()):
            os._exit(1)
        try:
            channel.sendall(b"%d\n" % os.getpid())  # from here on it has its session and can be signalled
        except BrokenPipeError:
            os._exit(1)
        return json.loads(line)


def _run(module: str) -> int:
    """Run a module as ``python -m`` does; return its exit status."""
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


def _exit(status: int) -> NoReturn:
    """End as the interpreter does but leave modules alone: to clear them takes longer than a short training."""
    threading._shutdown()  # waits for threads; multiprocessing registers with it
    atexit._run_exitfuncs()
    # Flush files that nobody has closed. Imported objects are frozen, so there are few to look at.
    for file in [thing for thing in gc.get_objects() if isinstance(thing, io.IOBase)]:
        with contextlib.suppress(OSError, ValueError):
            file.flush()
    os._exit(status & 0xFF)


def _seed_randomly() -> None:
    """Give each process its own random state, except for torch's, which starts alike in new interpreters too."""
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()


def _set_threads(env: Mapping[str, str]) -> None:
    """Set the numbers of threads that the libraries have read from the server's environment when they were loaded."""

    def threads(name: str) -> int | None:
        first = env.get(name, "").split(",")[0].strip()
        return int(first) if first.isdecimal() and int(first) > 0 else None

    if (torch := sys.modules.get("torch")) is not None and threads("OMP_NUM_THREADS"):
        torch.set_num_threads(threads("OMP_NUM_THREADS"))
    with contextlib.suppress(ImportError):
        from threadpoolctl import threadpool_limits

        limit = threads("OPENBLAS_NUM_THREADS") or threads("OMP_NUM_THREADS") or processors()
        threadpool_limits(limit, user_api="blas")


if __name__ == "__main__":
    main()
