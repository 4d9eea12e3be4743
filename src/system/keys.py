"""What the value of every key of ``conf/`` must be: one table per command, used by the command line and constructors.

That of a training is in :mod:`src.system.training_keys`. Nothing here imports torch, so a bad value is reported before
that import takes seconds.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from src.system.errors import UserError
from src.system.kinds import (
    FLAG,
    Choice,
    Either,
    Kind,
    ListOf,
    Nothing,
    Number,
    OneGroup,
    Text,
    Whole,
    hint_of,
    or_null,
    spelled,
)
from src.system.places import Place, no_folder, no_match, no_run
from src.system.training_keys import CLASSES, PATH, SEED, TRAIN

FOLDER = Place("a folder", obstacle=no_folder)
RUN_FOLDER = Place("the folder that a training left", obstacle=no_run)
OWN_IMAGES = Place("a picture, a folder or a glob such as 'scans/*.png'", obstacle=no_match)
SPLIT = Choice(("val", "test"))
AUTO = Choice(("auto",))
DEVICE = Choice(("auto", "cpu", "cuda"))


def some_of(*names: str, at_least: int = 1) -> Either:
    """Return the kind of ``all``, one name, or a list of names."""
    some = (Choice(("all", *names)), ListOf(Choice(names), at_least=at_least))
    return Either(some, f"all, one or a list [in,brackets] of {', '.join(names)}")


READER: dict[str, Kind] = {
    "run": RUN_FOLDER,
    "checkpoint": Choice(("best", "last")),
    "seed": or_null(SEED),
    "device": DEVICE,
    "data.root": or_null(FOLDER),
    "other_data": FLAG,
    "cache_dir": PATH,
}
JUDGED = READER | {"split": SPLIT}
OWN = {
    "images": Either(
        (OWN_IMAGES, ListOf(OWN_IMAGES, at_least=1), Nothing()), f"{OWN_IMAGES.words}, or a list of these"
    ),
    "invert": FLAG,
}
PARTS = ("elbo", "latents", "reconstruction", "representation", "samples", "bound")
PICTURES = (
    *("reconstructions", "samples", "losses", "samples_from_mixture", "rates", "scatter", "manifold", "histogram"),
    *("directions", "traversals", "plane", "interpolations", "class_means", "neighbours"),
)
KEYS: dict[str, dict[str, Kind]] = {
    "train": TRAIN,
    "evaluate": JUDGED
    | {
        "parts": some_of(*PARTS),
        "budget": or_null(Number(above=0), AUTO),
        "bound.samples": Either((Whole(1), AUTO)),
        "bound.images": or_null(Whole(1), AUTO),
        "latents.components": Whole(1),
        "samples.images": Either((Whole(10), AUTO)),
        "samples.bootstrap": Whole(2),
        "samples.components": Whole(1),
        "samples.inception": or_null(FLAG),
        "representation.train_images": Whole(2),
    },
    "detect": READER
    | OWN
    | {
        "run": Either((RUN_FOLDER, ListOf(RUN_FOLDER, at_least=1)), f"{RUN_FOLDER.words}, or a list of these"),
        "normal": CLASSES,
        "samples": Whole(1),
        "kinds": or_null(OneGroup()),
        "folder": or_null(PATH),
    },
    "explore": JUDGED
    | OWN
    | {
        "figures": some_of(*PICTURES, at_least=0),
        "noise": or_null(Number(above=0, at_most=10)),
        "embed": or_null(Choice(("npz", "csv", True, False))),
    },
    "audit": {key: kind for key, kind in TRAIN.items() if key.startswith("data.")}
    | {"seed": or_null(SEED), "folder": PATH},
    "report": {"folder": Place("the folder of a multirun, or any that holds run folders", obstacle=no_folder)},
    "benchmark": {
        "experiments": Either((Text(), ListOf(Text(), at_least=1)), "a list of experiments"),
        "rounds": Whole(1),
        "seconds": Number(above=0),
        "device": DEVICE,
        "overrides": Either((Text(), ListOf(Text())), "a list of overrides, each in quotes"),
        "data_dir": PATH,
        "folder": PATH,
    },
    "growth": {
        "network": Text(),
        "images": ListOf(Whole(100)),
        "sides": ListOf(Whole(1)),
        "latents": ListOf(Whole(1)),
        "depths": ListOf(Whole(1)),
        "rounds": Whole(1, 50),  # as many as an epoch of growth.IMAGES has room for
        "seconds": Number(above=0),
        "device": DEVICE,
        "folder": PATH,
    },
}


def pattern_of(key: str, keys: Mapping[str, Kind]) -> str | None:
    """Return the entry of a table for a dotted key: the key itself, else the first pattern that matches it."""
    return key if key in keys else next((pattern for pattern in keys if fnmatchcase(key, pattern)), None)


def kind_of(key: str, keys: Mapping[str, Kind] = TRAIN) -> Kind | None:
    """Return what the value of a dotted key must be; None for a key that is not in the table."""
    pattern = pattern_of(key, keys)
    return None if pattern is None else keys[pattern]


def takes_paths(kind: Kind | None) -> bool:
    """Return whether a text of this kind is a path."""
    return any(isinstance(one, Place) for one in (kind.kinds if isinstance(kind, Either) else (kind,)))


def groups_of(keys: Mapping[str, Kind]) -> Iterator[str]:
    """Yield the dotted names that hold keys, not values: ``model``, ``trainer``, ``model.likelihood``, ..."""
    seen = set()
    for pattern in keys:
        parts = pattern.split(".")[:-1]
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            if "*" not in name and name not in seen:
                seen.add(name)
                yield name


def check(key: str, value: Any, kind: Kind, typed: str | None = None) -> None:
    """Raise a :class:`UserError` that says what the value must be unless ``value`` is of this kind.

    ``typed`` is the override that set the value, if there is one.
    """
    if kind.takes(value):
        return
    hint = hint_of(kind, value)
    advice = f"give {kind.words}" + (f"; {hint}" if hint else "")
    if isinstance(kind, Text) and value is not None and not isinstance(value, str | list | dict):
        advice += f" (a text that looks like something else needs quotes: '{key}=\"{spelled(value)}\"')"
    raise UserError(f"{typed or f'{key}={spelled(value)}'}: {advice}")


def require(group: str, **values: Any) -> None:
    """Check the arguments of a constructor against the kinds of their keys in ``conf/<group>``.

    Raises:
        UserError: for the first that is of another kind.
    """
    for name, value in values.items():
        check(f"{group}.{name}", value, kind_of(f"{group}.{name}"))
