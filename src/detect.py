"""Say which images are not normal, how sure that is, and whether a model is needed for it.

``python -m src.detect run=outputs/...`` scores test images with a run that was trained on normal ones, beside baselines
that need no model. It writes ``scores.csv``, ``detection.json`` and ``figures/*.png`` into the run folder. With
``images=`` it judges your own pictures. Not for diagnosis.
"""

if not __package__:  # started as a file, it does not find the project
    raise SystemExit(f"error: type python -m src.detect in {__file__.rpartition('src')[0]}")

import logging
from pathlib import Path

from omegaconf import DictConfig

from src.system.cli import announce, command
from src.system.errors import UserError

log = logging.getLogger(__name__)


@command("detect")
def main(cfg: DictConfig) -> None:
    """Judge images by one run, or by several together."""
    runs = [cfg.run] if isinstance(cfg.run, str) else [*cfg.run]
    if len({Path(run).resolve() for run in runs}) < len(runs):
        raise UserError("a run is given twice: it would count twice")
    if len(runs) > 1 and cfg.folder is None:
        raise UserError("several runs have no common folder: say where to write, such as folder=outputs/detection")
    announce(f"detecting by {', '.join(map(str, runs))}")
    from src.detection import judging
    from src.runs.reader import open_run

    opened = [open_run(cfg, run) for run in runs]
    folder = judging.folder_of(cfg.folder, [run for run, _ in opened], cfg.images)
    panel = judging.Panel([predictor for _, predictor in opened], cfg.normal, cfg.samples)
    found = panel.judge_pictures(cfg.images, cfg.invert) if cfg.images else panel.judge_test_images(cfg.kinds)
    log.info("\n%s\n", found.words)
    for path in found.write(folder, [run for run, _ in opened]):
        log.info("%s", path)


if __name__ == "__main__":
    main()
