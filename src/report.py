"""The report of a sweep, or of any folder of runs: one page, one table, the figures.

``python -m src.report folder=outputs/multirun/...`` writes ``report/index.html``, ``report/*.png|svg`` and
``results.csv`` into that folder. A multirun writes the same when it ends.
"""

if not __package__:  # started as a file, it does not find the project
    raise SystemExit(f"error: type python -m src.report in {__file__.rpartition('src')[0]}")

import logging
from pathlib import Path

from omegaconf import DictConfig

from src.system.cli import announce, command

log = logging.getLogger(__name__)


@command("report")
def main(cfg: DictConfig) -> None:
    """Report on one folder of runs."""
    announce(f"reporting on {cfg.folder}", "pandas")
    from src.reporting.report import write_report
    from src.reporting.results import read_results

    results = read_results(Path(str(cfg.folder)))
    page = write_report(results)
    log.info("%d runs, %d finished: %s", len(results.table), len(results.finished), page)


if __name__ == "__main__":
    main()
