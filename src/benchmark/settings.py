"""What the benchmark is asked for, seen to make sense before anything is measured or torch imported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from src.benchmark.standin import NAMES
from src.system.configs import check_config
from src.system.errors import UserError
from src.system.overrides import refusal

CONF = Path(__file__).parents[2] / "conf"
PARTS = ("steps", "startup", "decoding", "evaluation", "epochs")
# What other parts than steps train.
RUN = {
    "startup": ("model=conv_tiny", "data=digits", "data.image_size=16"),
    "epochs": ("model=conv_tiny", "data=image_folder", "data.channels=1", "data.image_size=32"),
}
# What the loops written by hand know: of all other keys they take the config's own value, or have no use for them.
KNOWN: dict[str, tuple[Any, ...]] = {
    "model.kl_weight": (1,),
    "model.kl_warmup_steps": (0,),
    "model.likelihood._target_": ("src.models.likelihoods.BernoulliLikelihood",),
    "data.binarize": ("none",),
    "data.dequantize": (False,),
    "data.name": tuple(NAMES),
    "data.channels": (1, None),
    "optimizer._target_": ("torch.optim.Adam",),
    "optimizer.betas": ([0.9, 0.999],),
    "optimizer.eps": (1e-8, None),
    "optimizer.weight_decay": (0,),
    "optimizer.amsgrad": (False, None),
    "schedule._target_": (None,),
    "trainer.precision": ("auto", "32-true", "bf16-mixed"),
    "trainer.gradient_clip_val": (None,),
    "trainer.accumulate_grad_batches": (1,),
    "trainer.max_steps": (-1,),
    "trainer.detect_anomaly": (False,),
    "trainer.deterministic": (False,),
}
# Keys that the benchmark sets itself, or that must be as they are: a process a loop, and whole epochs.
SET_BY_BENCHMARK = (
    *("hydra", "run_dir", "ckpt_path", "experiment", "callbacks=", "callbacks.gate"),
    *("data=", "data.root", "data.cache_dir", "data.download"),
    *("trainer=", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.limit_", "trainer.overfit_batches", "trainer.fast_dev_run", "trainer.val_check_interval"),
)


def composed(*overrides: str, hydra: bool = False) -> DictConfig:
    """The config of ``python -m src.train <overrides>``; with its ``hydra`` node, if that is wanted."""
    GlobalHydra.instance().clear()  # the benchmark's own command was composed by Hydra too
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides), return_hydra_config=hydra)


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings, each list a list and nothing in it twice.

    Args:
        settings: ``conf/benchmark.yaml``, resolved; each value is one that its key can have.

    Raises:
        UserError: an experiment that there is not, or overrides with which nothing can be compared.
    """
    parts = [*PARTS] if settings["parts"] == "all" else _words(settings["parts"])
    overrides, experiments = _words(settings["overrides"]), _words(settings["steps"]["experiments"])
    _refuse_what_cannot_be_run(parts, overrides)
    for experiment in experiments if "steps" in parts else []:
        _refuse_what_cannot_be_compared(experiment, overrides)
    steps = {**settings["steps"], "experiments": experiments}
    return {**settings, "parts": parts, "overrides": overrides, "steps": steps}


def _words(words: str | Sequence[str]) -> list[str]:
    """One word or several, as a list without repetitions."""
    return list(dict.fromkeys([words] if isinstance(words, str) else words))


def _refuse_what_cannot_be_run(parts: Sequence[str], overrides: Sequence[str]) -> None:
    for override in overrides:
        if override.lstrip("+~").startswith(SET_BY_BENCHMARK):
            raise UserError(f"overrides={override}: that is the benchmark's own to set")
    for part in RUN.keys() & parts:
        _composed([*RUN[part], *(["data.root=x"] if "data=image_folder" in RUN[part] else [])], overrides)


def _composed(run: Sequence[str], overrides: Sequence[str]) -> DictConfig:
    try:
        cfg = composed(*run, *overrides, hydra=True)
        check_config(cfg, "train")
    except (HydraException, UserError, ValueError) as error:
        raise UserError(f"overrides={list(overrides)}: {refusal(error, CONF, 'train', overrides)}") from error
    return cfg


def _refuse_what_cannot_be_compared(experiment: str, overrides: Sequence[str]) -> None:
    """See that a config asks for nothing that the loops written by hand do not do."""
    if not (CONF / "experiment" / f"{experiment}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
        raise UserError(f"steps.experiments={experiment}: choose from {known}")
    cfg = _composed([f"experiment={experiment}"], overrides)
    for key, known in KNOWN.items():
        value = OmegaConf.select(cfg, key)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if value not in known:
            raise UserError(f"{key}={value}: the loops to compare with know {', '.join(map(str, known))} only")
