"""What all commands share: Hydra composes the config, it is checked before torch is imported, errors are one line."""

import atexit
import contextlib
import errno
import functools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import hydra
from hydra._internal import utils as hydra_internals
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from src.system.configs import NEEDED, check_config, check_root, check_sweep, expand_home
from src.system.contents import LOCK, RUN_CONTENTS
from src.system.errors import UserError
from src.system.explain import explain
from src.system.files import readable, refuse_links_out
from src.system.help import help_of
from src.system.locks import lock_for_training
from src.system.overrides import check_options, refusal
from src.system.signals import interrupt_on, status_of

log = logging.getLogger(__name__)

LOADED = {"lightning": "torch and Lightning", "pandas": "pandas and Matplotlib"}
CONF = Path(__file__).parents[2] / "conf"


def command(config: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorate an entry point: call it with what ``conf/<config>.yaml`` and the overrides compose.

    An error that the user can fix is printed (and logged, if there is a log) as one line, with a non-zero exit status.
    Any other error is a fault of this project and shows its traceback; HYDRA_FULL_ERROR=1 shows every traceback.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            try:
                interrupt_on(signal.SIGTERM, signal.SIGHUP)
                logging.raiseExceptions = False  # else each line that cannot be logged prints a traceback
                check_options(sys.argv[1:])
                if config != "train" and get_args_parser().parse_args(sys.argv[1:]).help:
                    print(help_of(CONF / f"{config}.yaml", sys.modules[task.__module__].__doc__))
                    return
                # Hydra prints its errors in up to fifteen lines and has no option to raise them instead:
                # https://github.com/facebookresearch/hydra/issues/2590
                hydra_internals.run_and_report = lambda call: call()
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config)(task)()
            except KeyboardInterrupt as stop:
                if _wants_traceback():
                    raise
                print_error("error: interrupted; what was finished is kept")
                sys.exit(status_of(stop))
            except Exception as error:
                _report(error, refusal(error, CONF, config, sys.argv[1:]))

        return main

    return decorate


def announce(what: str, library: str = "lightning") -> None:
    """Log what the command begins to do, before imports that take seconds; only the first rank logs.

    Args:
        what: the line to log.
        library: the slowest import; a key of ``LOADED``.
    """
    if "LOCAL_RANK" not in os.environ:
        log.info("%s%s", what, "" if library in sys.modules else f"; loading {LOADED[library]} ...")


def print_error(line: str) -> None:
    """Print one line to stderr, for errors before there is a log."""
    print(line.replace("\n", "\\n"), file=sys.stderr)


def _report(error: Exception, line: str | None) -> NoReturn:
    if line is None or _wants_traceback():
        raise error
    print_error(f"error: {line}")
    sys.exit(_exit_status(error))


def _wants_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _exit_status(error: BaseException | None) -> int:
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error.exit_status if error is not None else 1


class Check(Callback):
    """Check a composed config before Hydra makes a folder for it, and report why a run has failed.

    Args:
        command: a key of :data:`src.system.keys.KEYS`.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self._before: set[Path] | None = None  # content of the run's folder; None if it did not exist
        self._lock: IO[str] | None = None  # on the run's folder, until this process ends

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the config of one run, and lock its folder for a training."""
        with self._ending_on_errors():
            check_config(config, self.command)
            expand_home(config, self.command)
            if self.command in NEEDED:  # it reads images by the keys of a training
                HydraConfig.instance().set_config(config)  # the folder's name may refer to it
                check_root(config)
            if self.command == "train":  # other commands write into an existing run's folder
                self._claim_folder(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check a sweep: the fixed keys and every swept value."""
        with self._ending_on_errors():
            check_sweep(config, self.command)
            expand_home(config, self.command)

    def _claim_folder(self, folder: Path) -> None:
        """Make the run's folder and lock it, before Hydra opens a log there: another training may be writing one.

        Raises:
            UserError: another training uses it, a link in it leads out, or it cannot be used.
        """
        try:
            self._before = set(folder.absolute().iterdir()) if folder.is_dir() else None
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, "it cannot be written to")
            refuse_links_out(folder, RUN_CONTENTS)
            self._lock = lock_for_training(folder)
            atexit.register(self._remove_empty, folder.absolute())
        except OSError as error:
            raise UserError(
                f"cannot use the folder {folder} ({error.strerror}): choose another hydra.run.dir"
            ) from error

    def on_run_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Report an error that the user can fix in one line."""
        error = job_return._return_value
        if job_return.status is not JobStatus.FAILED or (line := self._explain(error)) is None:
            return  # Hydra raises the error, and :func:`command` handles it
        # The user may have turned logging off.
        (log.error if logging.root.handlers else print_error)(readable(f"error: {line}"))
        sys.exit(_exit_status(error))

    def _remove_empty(self, folder: Path) -> None:
        """Remove the log, and the folder if it is new, of a run that failed before it wrote anything else."""
        if not folder.is_dir():  # it has been removed meanwhile
            return
        made = set(folder.iterdir()) - (self._before or set())
        if {path.suffix for path in made if path.name != LOCK} == {".log"}:
            for path in made:
                path.unlink()
            if self._before is None:
                with contextlib.suppress(OSError):  # another process uses it
                    folder.rmdir()

    def _explain(self, error: Exception) -> str | None:
        return None if _wants_traceback() else explain(error, self.command)

    @contextlib.contextmanager
    def _ending_on_errors(self) -> Iterator[None]:
        """End the program on any error: Hydra turns exceptions of callbacks into warnings and continues.

        See ``Callbacks._notify`` in https://github.com/facebookresearch/hydra/pull/1441.
        """
        try:
            yield
        except Exception as error:
            if (line := self._explain(error)) is None:
                traceback.print_exc()
            else:
                print_error(f"error: {line}")
            sys.exit(_exit_status(error))
