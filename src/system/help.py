"""``--help`` of the commands that read: their own keys, each with what its comment in the config file says.

Hydra's own would list the groups of a training, which they cannot use, and no meaning of any key.
"""

import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import yaml

KEY = re.compile(r"( *)(\w+):[^#]*(?:# *(.*))?")
NOT_KEYS = ("defaults", "hydra")
WIDEST = 40  # characters that a key and its value take before what is said of them


def help_of(path: Path, about: str) -> str:
    """What a command is for, and its keys with their defaults.

    Args:
        path: its config file.
        about: the command in words.
    """
    rows = list(_keys(path))
    column = min(WIDEST, max(len(key) for key, _ in rows)) + 4
    width = max(40, shutil.get_terminal_size((120, 24)).columns - column - 1)
    lines = [about.replace("``", "").strip(), "", "Keys, with what they are where they are not typed:"]
    for key, said in rows:
        below = "\n" + " " * column
        gap = " " * (column - len(key) - 2) if len(key) < column - 2 else below
        lines.append(f"  {key}{gap}{below.join(textwrap.wrap(said, width))}".rstrip())
    return "\n".join([*lines, "", "--hydra-help lists Hydra's own options."])


def _keys(path: Path) -> Iterator[tuple[str, str]]:
    """``key=value`` and what is said of it: of the files that a config takes its defaults from, then its own."""
    text = path.read_text(encoding="utf-8")
    tree = yaml.safe_load(text)
    for other in (name for name in tree.get("defaults", []) if isinstance(name, str) and name != "_self_"):
        yield from _keys(path.with_name(f"{other}.yaml"))
    meanings: dict[tuple[str, ...], str] = {}
    at: tuple[str, ...] = ()
    for line in text.splitlines():
        if found := KEY.match(line):
            indent, name, comment = found.groups()
            at = (*at[: len(indent) // 2], name)
            meanings[at] = comment or ""
        elif at and line.lstrip().startswith("#"):  # it goes on
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
    """A value as it is typed; ``...`` where there is none, and one must be."""
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    words = {"None": "null", "True": "true", "False": "false", "???": "..."}
    return words.get(str(value), str(value))
