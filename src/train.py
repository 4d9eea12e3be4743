"""Train a VAE, test its best checkpoint, and record both in one run folder.

``python -m src.train model=conv_deep data=chest_xray``; ``--help`` lists every group and key.
"""

import logging
import os

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from src.sweeps.points import run_here
from src.system.cli import announce, command

log = logging.getLogger(__name__)


@command("train")
def main(cfg: DictConfig) -> float | None:
    """Run one training; return the best monitored value, for whoever optimises it."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return run_here()
    name = HydraConfig.get().runtime.choices.get("model", cfg.model._target_)
    announce(
        f"{name} with {cfg.model.latent_dim} latents on {cfg.data.name}: "
        f"max_epochs {cfg.trainer.max_epochs}, {cfg.trainer.accelerator}, precision {cfg.trainer.precision}, "
        f"seed {cfg.seed}, into {os.path.relpath(cfg.run_dir)}"
    )
    # torch and Lightning come after the config is composed and checked: a typo is answered at once.
    import lightning as L
    from lightning.pytorch.utilities import rank_zero_only

    from src import acceleration, record, runs
    from src.console import hush_libraries
    from src.evaluation.likelihood import tested
    from src.machine import keep_pages

    hush_libraries()
    keep_pages()
    run = runs.RunFolder(cfg.run_dir)
    runs.fill_seed(cfg, run)
    acceleration.fill_precision(cfg, run.config)
    start = run.start(cfg)

    L.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = runs.build_datamodule(cfg)
    model = runs.build_model(cfg, datamodule)
    if start is not None:
        runs.read_weights(start, model)  # a damaged or foreign one is named before anything starts
    acceleration.compile_networks(model, cfg)
    trainer = runs.build_trainer(cfg)
    say = rank_zero_only(log.info)  # to the terminal and train.log
    datamodule.prepare_data()
    say(record.describe_data(datamodule))
    run.claim(cfg)
    try:
        trainer.fit(model, datamodule, ckpt_path=start, weights_only=True)
    except SystemExit:  # Lightning's answer to Ctrl-C
        resume = f"Go on with the same overrides, hydra.run.dir={run.path} and ckpt_path=last"
        again = f"No epoch was complete: delete {run.path} and start again"
        say(f"\nInterrupted. {resume if run.last.exists() else again}")
        raise
    test = {}
    if cfg.test:
        # Only the weights: trainer.test(ckpt_path=...) would also set the callbacks back to the best epoch.
        if run.best.exists():
            model.load_state_dict(runs.read_weights(run.best, model))
        test = tested(trainer, model, datamodule)
    if trainer.is_global_zero:
        config = OmegaConf.to_container(cfg, resolve=True)
        metrics = record.summarize(trainer, model, datamodule, test, config)
        run.write_metrics(metrics)
        say(record.report(run, metrics))
    return next(iter(record.best(trainer).values()), None)


if __name__ == "__main__":
    main()
