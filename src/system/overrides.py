"""Explain in one line why Hydra cannot compose a command line, and how to fix it."""

import contextlib
import json
import os
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from src.system.configs import MAY_BE_NULL, NEEDED, parsed
from src.system.errors import UserError
from src.system.explain import explain
from src.system.keys import KEYS, check, kind_of
from src.system.kinds import nearest
from src.system.names import Names, unknown_choice

MEANT = ("run", "folder")  # keys that somebody who types a bare path wants to set
NO_SUCH_KEY = re.compile(r"Could not (?:override|delete|append to) '([^']*)'|Key '([^']*)' is not in struct")
NOT_THERE = re.compile(r"Could not delete from config. '([^']*)' does not exist|No match for '([^']*)' in the defaults")
# Patterns of Hydra's messages, and what to answer.
ANSWERS = (
    (r"Multiple values for ([^.\s]+)\.", "{0} has a choice already: leave out the +"),
    (
        r"Could not delete '([^'=]+)=([^']*)'. No match",
        "~{0}={1}: that is not its choice here; ~{0} leaves out whatever it is",
    ),
    (r"Could not append to config. An item is already at '([^']*)'", "{0} is there already: leave out the +"),
    (
        r"Ambiguous value for argument '([^=]*)=(.*)'",
        "{0}={1} names several values: add -m to sweep over them, write {0}=[{1}] for a list, '{0}=\"{1}\"' for a text",
    ),
)
MERGING = re.compile(r"Error merging override (\S+)")


def check_options(words: Sequence[str]) -> None:
    """Check that every word with a leading dash is an option of Hydra, and that every override has a name.

    Raises:
        UserError: one is not or has none, or one of Hydra's own keys has a wrong value.
    """
    parser = get_args_parser()

    def refuse(message: str) -> None:
        known = [option for option in parser._option_string_actions if option.startswith("--")]
        word = next((w for w in words if w.startswith("-") and w.partition("=")[0] not in known), "")
        near = nearest(word.partition("=")[0], known, 0.8)
        hint = f"did you mean {near}?" if near else "settings are typed without dashes, as in model.latent_dim=8"
        raise UserError(f"{message}: {hint}")

    parser.error = refuse
    overrides = parser.parse_args(list(words)).overrides
    for nameless in (o for o in overrides if not o.strip("+~ ") or o.lstrip("+~").startswith("=")):
        raise UserError(f"cannot read {nameless!r}: write key=value")
    with contextlib.suppress(OverrideParseException):  # Hydra raises it again when it composes
        for override in parsed(overrides):  # Hydra uses these before the whole config is checked
            key = override.key_or_group
            if key.startswith("hydra.") and (kind := kind_of(key)) is not None and not override.is_sweep_override():
                check(key, override.value(), kind, override.input_line)


def refusal(error: Exception, folder: Path, config: str, words: Sequence[str]) -> str | None:
    """Return one line for an error around the composition of a config; None for a fault of this project.

    Args:
        error: what was raised.
        folder: the folder of the command's config.
        config: the name of the config.
        words: the command line.
    """
    overrides = _overrides(words)
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override), folder, config)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        return _missing(error, overrides)
    composing = any(frame.name == "compose_config" for frame in traceback.extract_tb(error.__traceback__))
    if composing and config in NEEDED and (line := _no_choice(folder, overrides)) is not None:
        return line
    if isinstance(error, HydraException) and not isinstance(error, InstantiationException):
        return _composition(error, folder, config, overrides)
    unknown = f"these overrides give no config ({str(error).splitlines()[0]})" if composing else None
    return explain(error, config) or unknown


def _overrides(words: Sequence[str]) -> list[str]:
    """Return the command line without Hydra's options and their values."""
    parser = get_args_parser()
    parser.error = lambda message: None  # check_options has reported it
    return parser.parse_args(list(words)).overrides


def _unreadable(override: str, folder: Path, config: str) -> str:
    (key, equals, value), shown = override.partition("="), repr(override).replace(r"\\", "\\")
    if not equals or not key:
        named = next((name for name in MEANT if name in KEYS[config]), None)
        if named is not None and (os.sep in override or Path(override).exists()):
            return f"cannot read {shown}: write {named}={override}"
        return f"cannot read {shown}: write key=value{_such_as(override, folder)}"
    return f"cannot read {shown}: {_what_is_wrong(key, value)}"


def _what_is_wrong(key: str, value: str) -> str:
    sweep = re.fullmatch(r"(\w+)\(.*\)", value)
    doubts = {
        "leave out the spaces around =": key != key.strip(),
        f"{key} cannot be the name of a key": not re.fullmatch(r"[+~]{0,2}[\w$]+([./@:-][\w$]+)*", key),
        "its quotes do not match": re.search("['\"]", value),
        "its brackets do not match": any(value.count(left) != value.count(right) for left, right in ("()", "[]", "{}")),
        f"{sweep and sweep[1]}() does not take that": sweep,
    }
    listed = value.startswith("[") and value.endswith("]")
    typed = f"[{','.join(json.dumps(item.strip()) for item in value[1:-1].split(','))}]" if listed else f'"{value}"'
    return next((doubt for doubt, true in doubts.items() if true), f"put its value into quotes: '{key}={typed}'")


def _such_as(word: str, folder: Path) -> str:
    """Complete a single word, a group or a choice, to an override: ``, such as model=lstm``."""
    choices = sorted(path for path in folder.glob("*/*.yaml") if word in (path.stem, path.parent.name))
    return f", such as {choices[0].parent.name}={choices[0].stem}" if choices else ""


def _missing(error: MissingConfigException, overrides: Sequence[str]) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    if not group:
        return f"there is no config {choice}: look at --config-name and --config-dir"
    typed = next((o.partition("=")[0] for o in overrides if re.match(rf"\+?{re.escape(group)}(@[^=]*)?=", o)), group)
    return str(unknown_choice(typed.lstrip("+"), choice, sorted(error.options or [])))


def _no_choice(folder: Path, overrides: Sequence[str]) -> str | None:
    """Explain that a group needs the name of a choice where it was given null, a number, a list, ..."""
    for group, _, value in (override.lstrip("+").partition("=") for override in overrides):
        options = sorted(path.stem for path in (folder / group.partition("@")[0]).glob("*.yaml"))
        word = re.fullmatch(r"[A-Za-z_][\w-]*(,[\w-]+)*|\w+\(.*\)", value) and value not in ("null", "true", "false")
        if options and group and not word:
            hint = f"; ~{group} leaves it out" if group in MAY_BE_NULL else ""
            return f"{unknown_choice(group, value, options)}{hint}"
    return None


def _composition(error: HydraException, folder: Path, config: str, overrides: Sequence[str]) -> str:
    text = str(error)
    for pattern, answer in ANSWERS:
        if found := re.search(pattern, text):
            return answer.format(*found.groups())
    if found := NO_SUCH_KEY.search(text) or NOT_THERE.search(text):
        key = next(filter(None, found.groups()), "")
        line = next((o for o in overrides if o.lstrip("+~").partition("=")[0] == key), key)
        return str(_names(folder, config, overrides).unknown(key, line))
    cause = error.__cause__
    reason = str(cause) if isinstance(cause, OmegaConfBaseException | ValueError) else text
    reason = reason.split("\n", maxsplit=1)[0].strip()
    if found := MERGING.search(text):
        return f"{found[1]}: {reason}"
    return reason


def _names(folder: Path, config: str, overrides: Sequence[str]) -> Names:
    """Return the keys that exist with the chosen groups, or with the defaults if these cannot be composed."""
    groups = [path.name for path in folder.iterdir() if path.is_dir()]
    chosen = [o for o in overrides if o.lstrip("+").partition("=")[0].partition("@")[0] in groups]
    choices = [o for o in chosen if not re.search(r"[,(\[{]|=null$", o)]
    swept = [o.partition("=")[0] for o in chosen if o not in choices]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base="1.3"):
        try:
            return Names(compose(config, overrides=choices, return_hydra_config=True), swept)
        except HydraException:
            return Names(compose(config, return_hydra_config=True), swept)
