"""Shared fixtures: composed configs, the command line as a user types it, and real data where it is."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from src import runs
from src.data.base import ImageDataModule
from src.models.base import BaseVAE

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


QUICK = ("model=conv_tiny", "data=digits", "data.image_size=16", "data.batch_size=128")


def composed(*overrides: str) -> DictConfig:
    """The config of ``python -m src.train <overrides>``."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def built(*overrides: str, seed: int = 0) -> tuple[ImageDataModule, BaseVAE]:
    """Data module and freshly initialised model of a command line."""
    cfg = composed(*overrides)
    L.seed_everything(seed, verbose=False)
    datamodule = runs.build_datamodule(cfg)
    return datamodule, runs.build_model(cfg, datamodule)


def command(*overrides: str, module: str = "src.train") -> list[str]:
    return [sys.executable, "-m", module, *overrides]


def train_cli(*overrides: str, module: str = "src.train", **env: str) -> subprocess.CompletedProcess:
    """Run the command line; stdout and stderr together in ``.stdout``."""
    return subprocess.run(
        command(*overrides, module=module),
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,  # only for what would never end: a slow machine is no failure
        check=False,
    )


def assert_one_line_error(done: subprocess.CompletedProcess, *words: str) -> None:
    """The command failed, and its last line alone says why."""
    lines = done.stdout.strip().splitlines()
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    assert lines[-1].startswith("error: "), done.stdout
    for word in words:
        assert word in lines[-1], lines[-1]


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A run of two epochs, with its output; not to be written into."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    done = train_cli(*QUICK, "trainer.max_epochs=2", "seed=0", "tags=[quick]", f"hydra.run.dir={run}")
    assert done.returncode == 0, done.stdout
    return run, done


@pytest.fixture
def picture_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes random pictures: ``picture_folder({"cats/a.png": (20, 30)})`` gives the folder that holds them."""

    def write(files: dict[str, tuple[int, ...]], seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        for name, shape in files.items():
            path = tmp_path / "pictures" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        return tmp_path / "pictures"

    return write


def data(*overrides: str):
    """The data module of a command line, nothing read yet."""
    return runs.build_datamodule(composed(*overrides))


def examples(datamodule: ImageDataModule, part: str, count: int):
    """Images spread over a split, as the model sees them."""
    return datamodule.scale(datamodule.pool.images[datamodule.spread(part, count)])


def sides(splits) -> dict[int, str]:
    """Which split each image is in; fails where one is in two."""
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
