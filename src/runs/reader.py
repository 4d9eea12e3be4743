"""Open the run folder that a command names, by the keys of ``conf/reader.yaml``."""

import logging

from omegaconf import DictConfig

from src.models.predictor import Predictor
from src.runs.load import LoadedRun, load_run, predictor_of
from src.runs.record import on_what
from src.system.console import hush_libraries
from src.system.machine import hide_missing_gpus, keep_pages

log = logging.getLogger(__name__)


def open_run(cfg: DictConfig, path: str | None = None) -> tuple[LoadedRun, Predictor]:
    """Read the run that a command names and return it with its predictor; log the weights and the images.

    Args:
        cfg: has the keys of ``conf/reader.yaml``; of a command that takes no ``split`` it is the test split.
        path: the run folder; None for ``run``.

    Raises:
        UserError: see :func:`src.runs.load.load_run` and :func:`src.runs.load.predictor_of`.
    """
    hush_libraries()
    keep_pages()
    hide_missing_gpus()
    run = load_run(path or cfg.run, cfg.checkpoint, cfg.data.root, cfg.cache_dir, cfg.other_data)
    predictor = predictor_of(run, cfg.get("split", "test"), cfg.seed, cfg.device, cfg.cache_dir)
    log.info("%s, %s weights %s, %s", run.folder.path, cfg.checkpoint, run.checkpoint_hash, on_what(predictor))
    return run, predictor
