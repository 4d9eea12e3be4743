"""Evaluate a trained run: likelihood, latents, samples, reconstructions, representation.

``python -m src.evaluate run=outputs/...`` needs the run folder and its data. It prints a table and writes
``metrics.json`` (under ``evaluation``) and TensorBoard's text tab into that folder.
"""

if not __package__:  # started as a file, it does not find the project
    raise SystemExit(f"error: type python -m src.evaluate in {__file__.rpartition('src')[0]}")

import logging
import shlex
import sys
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src.system.cli import announce, command

log = logging.getLogger(__name__)


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate one run."""
    announce(f"evaluating {cfg.run}")
    from src.evaluation.suite import evaluate, parts_of
    from src.evaluation.table import evaluation_table
    from src.runs import record
    from src.runs.reader import open_run

    tree = OmegaConf.to_container(cfg, resolve=True)
    options = {name: tree.get(name, {}) for name in parts_of(tree["parts"])}
    run, predictor = open_run(cfg)
    keeper = record.EvaluationRecord(run, cfg.split)
    parts: dict[str, dict[str, Any]] = {}
    try:
        for name, figures in evaluate(predictor, options, tree["budget"]):
            keeper.keep(name, figures)
            parts[name] = figures
    finally:  # show the finished parts, whatever ended the evaluation
        if parts:
            names = run.model.metric_names(run.datamodule.pixels)
            log.info("\n%s\n\nWritten to %s", evaluation_table(parts, names), run.folder.metrics)
            if run.model.likelihood.is_pseudo(run.datamodule.pixels):
                log.info(record.PSEUDO)
            if cfg.split == "test":
                log.info("these are test images: use split=val while you still choose models or settings")
        missing = [part for part in options if part not in parts]
        if missing and isinstance(sys.exception(), KeyboardInterrupt):
            typed = [word for word in HydraConfig.get().overrides.task if not word.startswith("parts=")]
            words = ["python", "-m", "src.evaluate", *typed, f"parts=[{','.join(missing)}]"]
            log.info("To go on: %s", shlex.join(words))


if __name__ == "__main__":
    main()
