"""Train a VAE, test its best checkpoint, and record both in one run folder.

``python -m src.train model=conv_deep data=chest_xray``; ``--help`` lists every group and key.
"""

if not __package__:  # run as a file, it cannot import the project
    raise SystemExit(f"error: type python -m src.train in {__file__.rpartition('src')[0]}")

import logging
import os

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from src.sweeps.points import run_here
from src.system.cli import announce, command
from src.system.signals import stop_interrupting

log = logging.getLogger(__name__)


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Train, and return the metric ``compare_by`` of the best epoch, for a sweeper that optimizes it."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return run_here()
    name = HydraConfig.get().runtime.choices.get("model", cfg.model._target_)
    announce(
        f"{name} with {cfg.model.latent_dim} latents on {cfg.data.name}: "
        f"max_epochs {cfg.trainer.max_epochs}, {cfg.trainer.accelerator}, precision {cfg.trainer.precision}, "
        f"seed {cfg.seed}, into {os.path.relpath(cfg.run_dir)}"
    )
    # Import torch and Lightning after the config is checked, so that a typo is reported at once.
    import lightning as L

    from src.runs import build, checkpoints, fit, folder, record
    from src.system.console import hush_libraries
    from src.system.machine import hide_missing_gpus, keep_pages
    from src.training import acceleration, compilation

    hush_libraries()
    keep_pages()
    hide_missing_gpus()
    run = folder.RunFolder(cfg.run_dir)
    build.fill_seed(cfg, run)
    build.fill_dequantize(cfg)
    build.fill_precision(cfg, run)
    build.fill_compile(cfg, run)
    start = run.start(cfg)

    L.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = build.build_datamodule(cfg)
    model = build.build_model(cfg, datamodule)
    build.check_metrics(cfg, model, datamodule)
    # Check the checkpoint before anything is written.
    if start.weights is not None:
        model.load_state_dict(checkpoints.weights_of(start.weights, start.checkpoint, model))
    if start.resume is not None:
        checkpoints.check_resumable(start.resume, start.checkpoint, model)
    trainer = build.build_trainer(cfg)
    acceleration.skip_idle_hooks(trainer, model)
    fit.say(record.describe_size(model))  # before decoding the images, which may take minutes
    datamodule.prepare_data()
    run.check_images(start, datamodule)
    start = start._replace(checkpoint=None)  # the mapped file would keep its disk space
    fit.say(record.describe_data(datamodule))
    if start.weights is not None:
        fit.say(f"beginning with the weights of {start.weights}")
    if start.resume is not None:
        fit.say(f"going on after {start.steps:,} steps, from {start.resume}")
    build.begin_logging(trainer)
    if compiled := compilation.prepare(cfg, trainer, model, datamodule, start.steps):
        fit.say(compiled)
    stop_interrupting()
    run.claim(cfg)
    fit.run_to_its_end(run, cfg, trainer, model, datamodule, start)
    return record.best(trainer).get(cfg.compare_by)


if __name__ == "__main__":
    main()
