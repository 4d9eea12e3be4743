"""Measure how fast this machine trains: ``src.train`` beside a tutorial's loop, pythae and the best loop by hand.

``python -m src.benchmark`` (``make bench``) prints a table and writes it to ``outputs/benchmark``, as CSV too.
Speeds are compared within one run only. Nothing else should run meanwhile.
"""

if not __package__:  # started as a file, it does not find the project
    raise SystemExit(f"error: type python -m src.benchmark in {__file__.rpartition('src')[0]}")

import logging
import tempfile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from src.benchmark.settings import checked, composed
from src.system.cli import command

log = logging.getLogger(__name__)


@command("benchmark")
def main(cfg: DictConfig) -> None:
    """Measure the training steps of each experiment in turn."""
    settings = checked(OmegaConf.to_container(cfg, resolve=True))
    # Import torch after the settings are checked: a typo is answered at once.
    from src.benchmark.images import data_overrides
    from src.benchmark.loops import absent
    from src.benchmark.steps import measure
    from src.benchmark.table import Table
    from src.system.console import hush_libraries

    hush_libraries()
    table = Table("steps", settings, absent())
    log.info("%s\n", table.conditions)
    for experiment in settings["experiments"]:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            name = composed(f"experiment={experiment}", *table.overrides).data.name
            data, images = data_overrides(name, Path(settings["data_dir"]), Path(folder))
            overrides = [*table.overrides, *data]
            steps = measure(experiment, images, overrides, settings["rounds"], settings["seconds"])
        table.add(steps.cells(), steps.row())
    log.info("%s\n\nWritten to %s", table, table.folder)


if __name__ == "__main__":
    main()
