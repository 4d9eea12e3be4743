"""Share helpers between tests: composed configs, the command line as a user types it, and real data if present."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.callbacks import Callback, Checkpoint
from omegaconf import DictConfig

from hydra_plugins.slots_launcher import TRAINING
from src.data.base import ImageDataModule
from src.models.base import BaseVAE
from src.runs import build
from src.system.processes import Starter
from src.system.warm import Warm
from src.training.epoch_means import EpochMeans

ROOT = Path(__file__).parents[1]
MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
LIKELIHOODS = sorted(path.stem for path in (ROOT / "conf" / "likelihood").glob("*.yaml"))
REAL_DATA = Path(os.environ.get("DATA_DIR", "data")).resolve()

needs_mnist = pytest.mark.skipif(not (REAL_DATA / "MNIST").is_dir(), reason=f"no MNIST below DATA_DIR={REAL_DATA}")
needs_xrays = pytest.mark.skipif(
    not (REAL_DATA / "chest_xray").is_dir(), reason=f"no chest_xray below DATA_DIR={REAL_DATA}"
)
needs_binarized = pytest.mark.skipif(
    not (REAL_DATA / "binarized_mnist").is_dir(), reason=f"no binarized_mnist below DATA_DIR={REAL_DATA}"
)


SMALL = ("model=conv_tiny", "data=digits", "data.image_size=8")
QUICK = ("model=conv_tiny", "data=digits", "data.image_size=16", "data.batch_size=128")
PLAIN = ("~callbacks.figures", "~callbacks.dashboard", "~logger")  # for tests that check no picture

# One process for each worker imports what commands need; every command is forked from it.
WARM = Warm(
    [
        "tests.cuda_calls",
        *TRAINING,
        "src.evaluation.suite",
        "src.auditing.audit",
        "src.detection.judging",
        "src.exploration.export",
        "src.reporting.report",
        "src.benchmark.table",
    ]
)


def composed(*overrides: str) -> DictConfig:
    """Compose the config of ``python -m src.train <overrides>``."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def multirun_config(*overrides: str):
    """Compose the config that Hydra passes to a sweep's callback."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plain = [o for o in overrides if not OverridesParser.create().parse_override(o).is_sweep_override()]
        config = compose("train", overrides=plain, return_hydra_config=True)
    config.hydra.overrides.task = list(overrides)
    return config


def built(*overrides: str, seed: int = 0) -> tuple[ImageDataModule, BaseVAE]:
    """Build the data module and a newly initialised model of a command line."""
    cfg = composed(*overrides)
    L.seed_everything(seed, verbose=False)
    datamodule = build.build_datamodule(cfg)
    return datamodule, build.build_model(cfg, datamodule)


def command(*overrides: str, module: str = "src.train") -> list[str]:
    return [sys.executable, "-m", module, *overrides]


def cli(*overrides: str, module: str = "src.train", starter: Starter = WARM, **env: str) -> subprocess.CompletedProcess:
    """Run a command as a user types it; ``.stdout`` holds stdout and stderr.

    ``starter=Cold()`` starts a new interpreter, for tests that need one.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = starter.start(module, overrides, {**os.environ, **env}, output)
        status = process.wait(900)  # generous: a slow machine is no failure
        output.seek(0)
        return subprocess.CompletedProcess(command(*overrides, module=module), status, output.read())


def assert_one_line_error(done: subprocess.CompletedProcess, *words: str) -> None:
    """Check that the command failed, and that only its last line says why."""
    lines = done.stdout.strip().splitlines()
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    assert lines[-1].startswith("error: "), (done.returncode, done.stdout)
    for word in words:
        assert word in lines[-1], lines[-1]


def data(*overrides: str):
    """Build the data module of a command line, without reading any data."""
    return build.build_datamodule(composed(*overrides))


def examples(datamodule: ImageDataModule, part: str, count: int):
    """Return images spread over a split, as the model sees them."""
    return datamodule.scale(datamodule.pool.images[datamodule.spread(part, count)])


def sides(splits) -> dict[int, str]:
    """Map each image to its split; fail if one is in two."""
    found = {}
    for side in ("train", "val", "test"):
        for index in getattr(splits, side).tolist():
            assert index not in found
            found[index] = side
    return found


def folder_data(root, tmp_path, *overrides: str):
    return data(
        "data=image_folder", f"data.root={root}", f"data.cache_dir={tmp_path}/cache", "data.image_size=16", *overrides
    )


def fit(
    model: BaseVAE,
    datamodule: ImageDataModule,
    *callbacks: Callback,
    epochs: int = 1,
    ckpt_path: Path | None = None,
    **options: Any,
) -> L.Trainer:
    """Train a model in this process with these callbacks, or go on from a checkpoint; return the trainer."""
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[EpochMeans(), *callbacks],
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        **{"logger": False, **options},
    )
    trainer.fit(model, datamodule, ckpt_path=ckpt_path)
    return trainer
