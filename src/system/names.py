"""Find the key or choice that was probably meant."""

from collections.abc import Sequence

from omegaconf import DictConfig

from src.system.errors import UserError
from src.system.keys import kind_of
from src.system.kinds import Anything, nearest
from src.system.nodes import nodes

RENAMED = {"sweep": "folder"}  # keys of the report by their former names


class Names:
    """The keys of a composed config, to find the one that was probably meant.

    Args:
        config: the config with its ``hydra`` node.
        undecided: groups whose choice is not known.
    """

    def __init__(self, config: DictConfig, undecided: Sequence[str] = ()) -> None:
        keys = [key for key, *_ in nodes(config) if key.split(".")[0] != "hydra"]
        choices = config.hydra.runtime.choices.items()
        self._choices = {str(group): choice for group, choice in choices if not str(group).startswith("hydra/")}
        self._choices |= dict.fromkeys(undecided)
        self._keys = [*self._choices, *keys]

    def unknown(self, key: str, typed: str) -> UserError:
        """Return the error for a key that does not exist; ``typed`` is the override that names it."""
        _, equals, value = typed.lstrip("+~").partition("=")
        if key.startswith("hydra."):
            return UserError(f"{key} is no key; --cfg hydra lists those that there are")
        if (near := self._nearest(key)) is not None:
            return UserError(f"{key} is no key: did you mean {near}{equals}{value}?")
        if isinstance(kind_of(key), Anything) and equals:
            return UserError(f"{key} is no key: +{key}={value} adds it, if the library knows it")
        return UserError(f"{key} is no key{self._chosen_for(key)}; --help lists those that there are")

    def _chosen_for(self, key: str) -> str:
        """Return the choice that decides which keys there are beside ``key``: that of the innermost node."""
        while key := key.rpartition(".")[0]:
            last = key.rpartition(".")[2]
            for group, choice in self._choices.items():
                if choice and (group.endswith(f"@{key}") or group == last):
                    return f" of {group}={choice}"
        return ""

    def choice_for(self, node: str, value: str) -> str:
        """Return a hint for a node that was set to ``value`` instead of choosing from its group."""
        group = next((name for name in self._choices if name.endswith(f"@{node}")), None)
        return f"; did you mean {group}={value}?" if group and value != "null" else ""

    def _nearest(self, key: str) -> str | None:
        """Return a key that ends in ``key``, or has a similar name in the same node, or a similar name anywhere."""
        if (renamed := RENAMED.get(key)) in self._keys:
            return renamed
        others = [name for name in self._keys if name != key and not name.startswith(f"{key}.")]
        parent, dot, last = key.rpartition(".")
        ends = [name for name in others if name.endswith(f".{key}") or name.startswith(f"{key}@")]
        if ends:
            return min(ends, key=lambda name: ("@" not in name, name.count(".")))
        if dot and any(name == parent for name in others):
            beside = [name for name in others if name.rpartition(".")[0] == parent]
            return nearest(key, beside, 1 - 0.4 * len(last) / len(key))
        if near := nearest(key, others, 0.8 if dot else 0.6):
            return near
        lasts = {name.rpartition(".")[2]: name for name in reversed(others)}
        return lasts.get(nearest(last, list(lasts)) or "")


def unknown_choice(group: str, choice: str, options: list[str]) -> UserError:
    """Return the error for a choice that a config group does not have."""
    near = nearest(choice, options)
    return UserError(
        f"{group}={choice}: choose one of {', '.join(options)}" + (f"; did you mean {near}?" if near else "")
    )
