"""The benchmark's settings, checked before torch is imported and before anything is measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from src.benchmark.images import FOLDERS
from src.system.configs import check_config
from src.system.errors import UserError
from src.system.overrides import refusal

CONF = Path(__file__).parents[2] / "conf"
# What an override may change: with any other key the loops written by hand would do other work than src.train does.
# That they minimise the same loss is checked later, by src.benchmark.steps.check_loss.
ALLOWED = (
    *("model", "likelihood@model.likelihood=", "data.batch_size=", "data.image_size=", "optimizer.lr="),
    *(f"trainer.precision={precision}" for precision in ("auto", "32-true", "bf16-mixed")),
)


def composed(*overrides: str, hydra: bool = False) -> DictConfig:
    """Compose the config of ``python -m src.train <overrides>``; ``hydra`` keeps its ``hydra`` node."""
    GlobalHydra.instance().clear()  # the benchmark's own command was composed by Hydra too
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides), return_hydra_config=hydra)


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with each list as a list that holds nothing twice.

    Args:
        settings: ``conf/benchmark.yaml``, resolved; every value is of the kind that ``src.system.keys`` demands.

    Raises:
        UserError: for an experiment that does not exist or has no tutorial's loop, or an override that is not allowed.
    """
    lists = {
        key: list(dict.fromkeys([settings[key]] if isinstance(settings[key], str) else settings[key]))
        for key in ("experiments", "overrides")
    }
    for override in lists["overrides"]:
        if not override.lstrip("+~").startswith(ALLOWED):
            raise UserError(
                f"overrides={override}: the loops to compare with cannot follow it; change only model, "
                "data.batch_size, data.image_size, optimizer.lr, or trainer.precision=auto|32-true|bf16-mixed"
            )
    known = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
    for experiment in lists["experiments"]:
        if experiment not in known:
            raise UserError(f"experiments={experiment}: choose from {', '.join(known)}")
        try:
            cfg = composed(f"experiment={experiment}", *lists["overrides"], hydra=True)
            check_config(cfg, "train")
        except (HydraException, UserError, ValueError) as error:
            reason = refusal(error, CONF, "train", lists["overrides"])
            raise UserError(f"overrides={lists['overrides']}: {reason}") from error
        if cfg.data.name not in FOLDERS:
            raise UserError(f"experiments={experiment}: its data are {cfg.data.name}, not one of {', '.join(FOLDERS)}")
    return {**settings, **lists}
