"""Audit a data set before anything is trained on it: faults, duplicates, leaks, and what gives the classes away.

``python -m src.audit data=chest_xray`` takes the ``data.…`` keys of a training. It writes ``audit.json`` and contact
sheets, and changes no image.
"""

if not __package__:  # started as a file, it does not find the project
    raise SystemExit(f"error: type python -m src.audit in {__file__.rpartition('src')[0]}")

import logging
from pathlib import Path

from omegaconf import DictConfig

from src.system.cli import announce, command

log = logging.getLogger(__name__)


@command("audit")
def main(cfg: DictConfig) -> None:
    """Audit one data set."""
    announce(f"auditing {cfg.data.name}")
    from hydra.utils import instantiate

    from src.auditing import audit
    from src.runs.record import data_notes
    from src.system.console import hush_libraries
    from src.system.files import refuse_inside

    hush_libraries()
    folder = Path(str(cfg.folder))
    if "cache_dir" in cfg.data:
        refuse_inside(folder, cfg.data.root, "data.root")
    datamodule = instantiate(cfg.data, _convert_="all")
    notes = data_notes(datamodule)
    found = audit.audit(datamodule)
    log.info("%s", audit.words(found, notes))
    for path in audit.save(found, folder, notes):
        log.info("%s", path)


if __name__ == "__main__":
    main()
