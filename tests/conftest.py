"""Define fixtures, and limit the time of tests.

Import nothing heavy here: the process that starts the workers reads this file too.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

LONGEST = 60.0  # seconds of a test that is not marked slow


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """Return a read-only run of two epochs and its output; the first worker that needs it trains it for all."""
    from tests.helpers import QUICK, cli

    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    run, output = shared / "finished" / "run", shared / "finished" / "output.txt"
    run.parent.mkdir(exist_ok=True)
    with open(run.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            done = cli(*QUICK, "trainer.max_epochs=2", "seed=0", "tags=[quick]", f"hydra.run.dir={run}")
            assert done.returncode == 0, done.stdout
            output.write_text(done.stdout)
    return run, subprocess.CompletedProcess([], 0, output.read_text())


@pytest.fixture
def picture_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes random pictures, ``write({"cats/a.png": (20, 30)})``, and returns their folder."""

    def write(files: dict[str, tuple[int, ...]], seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        for name, shape in files.items():
            path = tmp_path / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        return tmp_path / "pictures"

    return write


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first: one that starts last would keep the other workers waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_sessionfinish() -> None:
    """End the warm process, so that its coverage is counted."""
    if (helpers := sys.modules.get("tests.helpers")) is not None:
        helpers.WARM.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Fail a test that takes over a minute and is not marked ``slow``."""
    report = yield
    if call.when == "call" and call.duration > LONGEST and report.passed and item.get_closest_marker("slow") is None:
        report.outcome = "failed"
        report.longrepr = f"it took {call.duration:.0f} s: mark it slow, or make it quick (limit {LONGEST:g} s)"
    return report
