"""Check a composed config, and the values of a sweep, against :mod:`src.system.keys`."""

import os
import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from src.system.directions import mode_of
from src.system.errors import UserError
from src.system.keys import KEYS, check, groups_of, kind_of, pattern_of, takes_paths
from src.system.kinds import Kind, spelled
from src.system.machine import check_precision, check_processes
from src.system.names import Names, unknown_choice
from src.system.nodes import has, is_group, leaves, own, plain
from src.system.places import no_folder

# Keys that a command reads by name and that therefore cannot be deleted, where its other keys depend on choices.
DATA_NEEDED = ("data", "data._target_", "data.name", "data.image_size", "data.channels", "data.batch_size", "seed")
NEEDED = {
    "train": (
        *("model", "model._target_", *DATA_NEEDED, "optimizer", "optimizer._target_"),
        *("trainer", "trainer._target_", "trainer.precision", "trainer.accelerator", "trainer.devices"),
        *("trainer.max_epochs", "model.latent_dim", "model.posterior._target_", "model.prior._target_"),
        *("tags", "compile", "compare_by", "test", "ckpt_path", "run_dir"),
    ),
    "audit": (*DATA_NEEDED, "folder"),
}
LOGGER_PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # extras of pyproject.toml
MAY_BE_NULL = ("schedule", "callbacks", "logger", "hydra.launcher", "hydra.sweeper")


def check_config(config: DictConfig, command: str) -> None:
    """Check that a composed config has the keys of its command and no others, with values that they can have.

    Args:
        config: the config with its ``hydra`` node.
        command: a key of :data:`src.system.keys.KEYS`.

    Raises:
        UserError: for the first key or value that is wrong; keys on the command line come first.
    """
    keys = KEYS[command]
    words = OmegaConf.to_container(config.hydra.overrides, resolve=False)
    typed = parsed([*words["task"], *words["hydra"]])
    _check_names(config, keys, typed)
    needed = NEEDED.get(command) or [key for key in keys if "*" not in key]
    for key in needed:
        if not has(config, key):
            raise UserError(f"{key} is missing: it may be set, but not left out")
    lines = {override.key_or_group: override.input_line.lstrip("+") for override in typed}
    swept = {override.key_or_group for override in typed if override.is_sweep_override()}
    place = {pattern: number for number, pattern in enumerate(keys)}
    known = [(pattern, *leaf) for leaf in leaves(config, keys) if (pattern := pattern_of(leaf[0], keys)) is not None]
    for pattern, key, node, name in sorted(known, key=lambda leaf: (leaf[1] not in lines, place[leaf[0]])):
        if OmegaConf.is_missing(node, name):
            if key in swept:
                continue
            where = (
                config.data.get("where_to_get") if key == "data.root" else f"set it: {key}=... ({keys[pattern].words})"
            )
            raise UserError(f"{key} has no value: {where}")
        # A value that a file takes from another key is checked there, or known only in the run.
        if key in lines or not OmegaConf.is_interpolation(node, name):
            _check_value(key, node, name, keys[pattern], lines.get(key))
    if command == "train":
        _check_modes(config)
        if OmegaConf.select(config, "trainer.accelerator") == "cpu":
            check_processes(OmegaConf.select(config, "trainer.devices"))
            check_precision(OmegaConf.select(config, "trainer.precision"))


def _check_value(key: str, node: DictConfig, name: str, kind: Kind, line: str | None) -> None:
    try:
        value = plain(node[name])
    except OmegaConfBaseException as error:
        if "HydraConfig was not set" in str(error):  # such as ${run_dir}, which is known only in the run
            return
        raise UserError(f"{line or key}: {str(error).splitlines()[0]}") from error
    check(key, value, kind, line)


def check_root(config: DictConfig, root: str | None = None) -> None:
    """See that ``data.root`` is a folder where the images are not downloaded into it.

    Args:
        config: that of a training.
        root: checked in place of the config's own.

    Raises:
        UserError: there is no such folder; the message says where to get the images.
    """
    data = config.data
    root = root or (None if OmegaConf.is_missing(data, "root") else data.get("root"))
    if root is None or data.get("download") or not data._target_.startswith("src."):
        return
    if obstacle := no_folder(Path(root).expanduser()):
        where = data.get("where_to_get") or "Set data.root to the folder that holds the images"
        raise UserError(f"{data.name}: {obstacle}. {where}")


def expand_home(config: DictConfig, command: str) -> None:
    """Replace ``~`` at the beginning of paths, which the shell leaves after ``key=``."""
    keys = KEYS[command]
    for key, node, name in leaves(config, keys):
        value = own(node, name)
        if isinstance(value, str) and value.startswith("~") and takes_paths(kind_of(key, keys)):
            with open_dict(config):
                node[name] = os.path.expanduser(value)


def _check_modes(config: DictConfig) -> None:
    """Check that callbacks and schedules monitor metrics in the direction in which these improve."""
    watchers = {f"callbacks.{name}": "mode" for name in OmegaConf.select(config, "callbacks") or {}}
    for at, place in (watchers | {"schedule": "factory.mode"}).items():
        node = OmegaConf.select(config, at)
        if not isinstance(node, DictConfig) or not isinstance(metric := OmegaConf.select(node, "monitor"), str):
            continue
        if metric.startswith("val/") and config.trainer.get("limit_val_batches") == 0:
            raise UserError(f"trainer.limit_val_batches=0 leaves no {metric} for {at} to watch: ~{at} leaves that out")
        mode = OmegaConf.select(node, place)
        target = str(node.get("_target_"))
        if mode is None and target.startswith(("lightning.", "pytorch_lightning.")):
            mode = "min"  # the default of Lightning's callbacks
        # The mode of a user's own callback or of a schedule may mean something else.
        needs_mode = target.startswith("src.") and has(config, f"{at}.{place}")
        if mode in ("min", "max") or (mode is None and needs_mode):
            mode_of(metric, mode, f"{at}.{place}")


def check_sweep(config: DictConfig, command: str) -> None:
    """Check a sweep: its fixed keys and every value that is swept.

    Raises:
        UserError: for the first key or value that is wrong.
    """
    if command != "train":
        raise UserError(f"{command} does one thing at a time: leave out -m")
    check_config(config, command)
    params = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}))
    words = [f"{key}={value}" for key, value in params.items()]
    words += OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    swept = [override for override in parsed(words) if override.is_sweep_override()]
    keys = KEYS[command]
    groups_swept = any(_options(config, override) for override in swept)
    # A node of a cluster may have images that this machine lacks.
    data_known = not groups_swept and not re.search("slurm|ray", str(config.hydra.launcher._target_), re.IGNORECASE)
    if data_known and "data.root" not in [override.key_or_group for override in swept]:
        check_root(config)
    for override in swept:
        key = override.key_or_group
        if key == "sweep":
            raise UserError(f"{override.input_line}: one preset at a time")
        values = list(_values(override))
        if not values:
            raise UserError(f"{override.input_line}: nothing to sweep over")
        if options := _options(config, override):
            for value in values:
                if spelled(value) not in options:
                    raise unknown_choice(override.get_key_element(), spelled(value), options)
            continue
        kind = kind_of(key, keys)
        if not (has(config, key) or override.is_add() or (groups_swept and kind is not None)):
            raise Names(config).unknown(key, override.input_line)
        for value in values if kind is not None else ():
            if not (isinstance(value, str) and "${" in value):  # known only in each point
                check(key, value, kind)
                _check_against_others(config, key, value, data_known)


def _check_against_others(config: DictConfig, key: str, value: Any, data_known: bool) -> None:
    """Check a swept value that is right or wrong depending on other keys."""
    if key == "data.root" and data_known:
        check_root(config, value)
    if key == "trainer.precision" and OmegaConf.select(config, "trainer.accelerator") == "cpu":
        check_precision(value)


def _check_names(config: DictConfig, keys: dict[str, Kind], typed: Iterable[Override]) -> None:
    known = {key.split(".")[0] for key in keys} | {"hydra"}
    names = Names(config)
    for override in typed:  # the user's own files may hold other keys
        key = override.key_or_group
        task_key = not key.startswith("hydra") and not _options(config, override)
        if task_key and not override.is_delete() and key.split(".")[0] not in known:
            raise names.unknown(key, override.input_line)
        ours = str(OmegaConf.select(config, f"{key.rpartition('.')[0]}._target_") or "src.").startswith("src.")
        if task_key and ours and override.is_add() and kind_of(key, keys) is None and not is_group(config, key):
            raise names.unknown(key, override.input_line)
    for group in groups_of(keys):
        node = OmegaConf.select(config, group)
        empty = node is None and group.startswith(MAY_BE_NULL)
        if has(config, group) and not isinstance(node, DictConfig) and not empty:
            inside = next(key for key in keys if key.startswith(f"{group}."))
            hint = names.choice_for(group, spelled(plain(node)))
            raise UserError(f"{group}={spelled(plain(node))}: {group} holds keys, such as {inside}{hint}")
    for group in ("callbacks", "logger"):
        for name, node in (OmegaConf.select(config, group) or {}).items():
            if node is not None and (not isinstance(node, DictConfig) or "_target_" not in node):
                raise UserError(f"{group}.{name} has no _target_: name the class that it is, or ~{group}.{name}")
            package = LOGGER_PACKAGES.get(str(node._target_).rpartition(".")[2]) if node is not None else None
            if package and find_spec(package) is None:
                raise UserError(f"logger={name} needs the package {package}: pip install '.[{package}]'")


def parsed(words: Iterable[str]) -> list[Override]:
    """Parse overrides; while Hydra runs, with the choices of groups, which ``glob(*)`` needs."""
    hydra = GlobalHydra.instance()
    loader = hydra.config_loader() if hydra.is_initialized() else None
    return OverridesParser.create(loader).parse_overrides(list(words))


def _values(override: Override) -> Iterator[Any]:
    """Yield the values of a swept key; of an interval its ends."""
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        whole = "int" in sweep.tags
        yield from (int(end) if whole else end for end in (sweep.start, sweep.end))
    elif override.is_discrete_sweep():
        for value in override.sweep_iterator():
            yield _unquoted(value)


def _unquoted(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    return [_unquoted(item) for item in value] if isinstance(value, list) else value


def _options(config: DictConfig, override: Override) -> list[str]:
    """Return the choices of the config group that an override names; empty if its key is not a group."""
    sources = [source for source in config.hydra.runtime.config_sources if source.schema == "file"]
    folders = [Path(source.path) / override.key_or_group for source in sources]
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
