"""``--help`` of the commands that read a run: their own keys, each with its comment in the config file.

Hydra's own help lists the groups of a training, which these commands cannot use, and no meaning of any key.
"""

import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

GROUP = re.compile(r" *- (\w+): (\w+)(?: *# *(.*))?$")  # a choice in the defaults list
KEY = re.compile(r"( *)(\w+):[^#]*(?:# *(.*))?")
NOT_KEYS = ("defaults", "hydra")
WIDEST = 40  # characters of a key and its value, before the comment moves to the next line


def help_of(path: Path, about: str) -> str:
    """Return the help text of a command: its purpose, and its keys with their defaults.

    Args:
        path: its config file.
        about: its purpose.
    """
    rows = list(_keys(path))
    column = min(WIDEST, max(len(key) for key, _ in rows)) + 4
    width = max(40, shutil.get_terminal_size((120, 24)).columns - column - 1)
    lines = [about.replace("``", "").strip(), "", "Keys and their defaults:"]
    for key, comment in rows:
        below = "\n" + " " * column
        gap = " " * (column - len(key) - 2) if len(key) < column - 2 else below
        lines.append(f"  {key}{gap}{below.join(textwrap.wrap(comment, width))}".rstrip())
    return "\n".join([*lines, "", "--hydra-help lists Hydra's own options."])


def _keys(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ``key=value`` and its comment, first from the files in the defaults list of a config, then its own."""
    text = path.read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    for other in (name for name in tree.get("defaults", []) if isinstance(name, str) and name != "_self_"):
        yield from _keys(path.with_name(f"{other}.yaml"))
    for group, choice, comment in (found.groups() for line in text.splitlines() if (found := GROUP.match(line))):
        if group not in NOT_KEYS:
            yield f"{group}={choice}", comment or ""
    meanings: dict[tuple[str, ...], str] = {}
    at: tuple[str, ...] = ()
    for line in text.splitlines():
        if found := KEY.match(line):
            indent, name, comment = found.groups()
            at = (*at[: len(indent) // 2], name)
            meanings[at] = comment or ""
        elif at and line.lstrip().startswith("#"):  # continues the comment above
            meanings[at] += " " + line.lstrip("# ")
    for key, value in _leaves(tree):
        if key[0] not in NOT_KEYS:
            yield f"{'.'.join(key)}={_typed(value)}", meanings[key]


def _leaves(tree: dict, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), value


def _typed(value: object) -> str:
    """Format a value as it is typed; ``...`` for a mandatory value."""
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    words = {"None": "null", "True": "true", "False": "false", "???": "..."}
    return words.get(str(value), str(value))
