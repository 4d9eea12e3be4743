"""The plan of a multirun command, and the names of folders that follow from it.

The folder of a sweep follows from its command, and the folder of a point from its swept values. So the same command
finds finished points again.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from omegaconf import DictConfig, OmegaConf

from src.system.configs import parsed
from src.system.contents import PLAN
from src.system.errors import UserError
from src.system.files import whole_file

LONGEST_NAME = 150  # characters of a folder's name; file systems allow 255


@dataclass(frozen=True)
class Plan:
    """The swept and the fixed keys, as they were typed.

    Attributes:
        swept: values or space of each swept key: ``{"model.latent_dim": "2,8,32"}``.
        fixed: the other overrides: ``{"experiment": "mnist_lstm"}``.
        command: command line that repeats the sweep.
        points: command line of each point in grid order; empty for a search.
    """

    swept: dict[str, str]
    fixed: dict[str, str]
    command: str = ""
    points: list[list[str]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write ``sweep.json``."""
        with whole_file(folder / PLAN) as file:
            file.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Plan | None":
        """Read ``sweep.json``; return None where there is none.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / PLAN
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): delete it, or repeat the sweep's command") from error


def plan_of(config: DictConfig, command: str) -> Plan:
    """Return the plan of a composed multirun config: its sweeper's parameters, overridden by the command line.

    ``sweep=`` is neither swept nor fixed: it only names parameters.

    Raises:
        UserError: the preset sets keys that are not the sweeper's.
    """
    _refuse_other_keys(config)
    params = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}))
    typed = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    swept, fixed = {}, {}
    overrides = parsed(typed)
    for override in overrides:
        key, value = override.input_line.partition("=")[::2]
        swept.pop(key, None), fixed.pop(key, None)
        if key != "sweep":
            (swept if override.is_sweep_override() else fixed)[key] = value
    points = []
    if config.hydra.sweeper._target_.endswith("BasicSweeper"):
        (grid,) = BasicSweeper.split_arguments(overrides, None)
        points = [[word for word in words if not word.startswith("sweep=")] for words in grid]
    return Plan(swept, fixed, command, points)


def _refuse_other_keys(config: DictConfig) -> None:
    """Raise a UserError if a preset sets more than what is swept: its points would not see that."""
    preset = config.hydra.runtime.choices.get("sweep")
    for source in config.hydra.runtime.config_sources:
        path = Path(source.path) / "sweep" / f"{preset}.yaml"
        if path.is_file() and (others := set(yaml.safe_load(path.read_text())) - {"defaults", "hydra"}):
            raise UserError(
                f"{path} sets {', '.join(sorted(others))}: a preset only says what is swept; put settings into an "
                "experiment, or into its hydra.sweeper.params with one value"
            )


def sweep_folder(plan: Plan, config: DictConfig) -> Path:
    """Return the folder of a sweep: as typed, else named by data, model, swept keys and a hash of the plan.

    The latter is below ``hydra.sweep.dir`` of the config files.
    """
    if any(override.startswith("hydra.sweep.dir=") for override in config.hydra.overrides.hydra):
        return Path(config.hydra.sweep.dir)
    choices = config.hydra.runtime.choices
    if "experiment" in plan.swept:
        choices = {"data": "experiments", "model": ""}
    data, model = (f"{kind}s" if kind in plan.swept else choices[kind] for kind in ("data", "model"))
    asked = [sorted(plan.swept.items()), sorted(plan.fixed.items()), config.hydra.sweeper._target_]
    keys = "-".join(short_names(_in_order(plan.swept)).values()) or "point"
    return Path(config.hydra.sweep.dir) / data / model / _bounded(f"{keys}-{_hash(asked)}")


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return the last part of each dotted key, or the whole key where two have the same last part."""
    keys = list(keys)
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def point_name(overrides: Sequence[str], swept: Mapping[str, Any]) -> str:
    """Return the name of a point's folder: ``kl_weight-0.5__latent_dim-2__seed-0``. It never needs quotes."""
    names = short_names(_in_order(swept))
    values = dict(override.partition("=")[::2] for override in overrides)
    exact = "__".join(f"{name}-{values.get(key, '')}" for key, name in names.items()) or "point"
    plain = re.sub(r"[^\w.+-]+", "_", exact)
    return plain if plain == exact and len(plain) <= LONGEST_NAME else _bounded(plain) + f"-{_hash(exact)}"


def _in_order(keys: Iterable[str]) -> list[str]:
    """Sort keys, so that the order in which they were typed does not matter; the seed is last."""
    return sorted(keys, key=lambda key: (key == "seed", key))


def _bounded(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 8] + "..." + name[-5:]


def _hash(what: Any) -> str:
    return blake2b(json.dumps(what).encode(), digest_size=3).hexdigest()


def plan_in(sweep: Path) -> Plan:
    """Read the plan of the sweep that this process works for.

    Raises:
        UserError: the sweep's folder is not on a disk of this machine.
    """
    plan = Plan.load(sweep)
    if plan is None:
        raise UserError(f"there is no {sweep}/sweep.json: the sweep's folder must be on a disk that all machines share")
    return plan
