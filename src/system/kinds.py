"""Kinds of config values; each says in words which values it takes."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol


class Kind(Protocol):
    """A kind of value; ``hint`` is optional, see :func:`hint_of`."""

    words: str

    def takes(self, value: Any) -> bool:
        """Return whether ``value`` (a plain value or a list of them) is of this kind."""


def is_whole(value: Any) -> bool:
    """Return whether ``value`` is an integer and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a finite number."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


@dataclass(frozen=True)
class Whole:
    """An integer."""

    at_least: int | None = None
    at_most: int | None = None

    @property
    def words(self) -> str:
        """Return text such as "a whole number of at least 1"."""
        if self.at_least is not None and self.at_most is not None:
            return f"a whole number from {self.at_least} to {self.at_most}"
        return "a whole number" + (f" of at least {self.at_least}" if self.at_least is not None else "")

    def takes(self, value: Any) -> bool:
        """As :meth:`Kind.takes` says."""
        low, high = self.at_least, self.at_most
        return is_whole(value) and (low is None or value >= low) and (high is None or value <= high)


@dataclass(frozen=True)
class Number:
    """A finite number."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    @property
    def words(self) -> str:
        """Return text such as "a number above 0 and below 1"."""
        bounds = (("of at least", self.at_least), ("above", self.above), ("up to", self.at_most), ("below", self.below))
        limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        return f"a number {limits}" if limits else "a finite number"

    def takes(self, value: Any) -> bool:
        """As :meth:`Kind.takes` says."""
        return (
            is_number(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True)
class Choice:
    """One of several words, numbers or bools.

    Attributes:
        choices: the values to choose from.
        also: other spellings of them, which are accepted but not named in messages.
    """

    choices: tuple[Any, ...]
    also: tuple[Any, ...] = ()

    @property
    def words(self) -> str:
        """Return text such as "one of none, threshold, dynamic"."""
        return f"one of {', '.join(map(spelled, self.choices))}"

    def takes(self, value: Any) -> bool:
        """As :meth:`Kind.takes` says."""
        return any(value == choice and type(value) is type(choice) for choice in (*self.choices, *self.also))

    def hint(self, value: Any) -> str:
        """Name the choice that was probably meant."""
        near = nearest(spelled(value), [spelled(choice) for choice in self.choices])
        return f"did you mean {near}?" if near else ""


FLAG = Choice((True, False))


@dataclass(frozen=True)
class Text:
    """A word, a path or a name.

    Attributes:
        pattern: a regular expression that the whole text must match.
        words: what the text is.
    """

    words: str = "some text"
    pattern: str = r"(?s).+"

    def takes(self, value: Any) -> bool:
        """As :meth:`Kind.takes` says."""
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None


@dataclass(frozen=True)
class OneGroup:
    """A regular expression that captures one thing."""

    words: str = "a regular expression with one (group)"

    def takes(self, value: Any) -> bool:
        """As :meth:`Kind.takes` says."""
        try:
            return isinstance(value, str) and re.compile(value).groups == 1
        except re.error:
            return False


@dataclass(frozen=True)
class ListOf:
    """A list of values of one kind.

    Attributes:
        kind: the kind of each item.
        length: the number of items; None for any number.
        at_least: the smallest number of items.
    """

    kind: Kind
    length: int | None = None
    at_least: int = 0

    @property
    def words(self) -> str:
        """Return text such as "a list of 2, each a number"."""
        count = f" of {self.length}" if self.length else f" of at least {self.at_least}" if self.at_least else ""
        return f"a list{count} in brackets, each {self.kind.words}"

    def takes(self, value: Any) -> bool:
        """As :meth:`Kind.takes` says."""
        if not isinstance(value, list) or (self.length is not None and len(value) != self.length):
            return False
        return len(value) >= self.at_least and all(self.kind.takes(item) for item in value)

    def hint(self, value: Any) -> str:
        """Return the hint for the first item that is not of the kind."""
        wrong = (item for item in value if not self.kind.takes(item)) if isinstance(value, list) else ()
        return next((hint_of(self.kind, item) for item in wrong), "")


@dataclass(frozen=True)
class Either:
    """Any of several kinds.

    Attributes:
        kinds: the alternatives.
        said: replaces their own words in messages.
    """

    kinds: tuple[Kind, ...]
    said: str = ""

    @property
    def words(self) -> str:
        """Return text such as "a number or null"."""
        return self.said or ", or ".join(kind.words for kind in self.kinds)

    def takes(self, value: Any) -> bool:
        """As :meth:`Kind.takes` says."""
        return any(kind.takes(value) for kind in self.kinds)

    def hint(self, value: Any) -> str:
        """Return the first hint that one of the kinds has."""
        return next((hint for kind in self.kinds if (hint := hint_of(kind, value))), "")


@dataclass(frozen=True)
class Nothing:
    """The value null."""

    words: str = "null"

    def takes(self, value: Any) -> bool:
        """As :meth:`Kind.takes` says."""
        return value is None


@dataclass(frozen=True)
class Made:
    """A node that names a class for Hydra to instantiate."""

    words: str = "a node with a _target_"

    def takes(self, value: Any) -> bool:
        """As :meth:`Kind.takes` says."""
        return isinstance(value, dict) and "_target_" in value


@dataclass(frozen=True)
class Anything:
    """Any value; the library that receives it checks it."""

    words: str = "anything"

    def takes(self, value: Any) -> bool:
        """As :meth:`Kind.takes` says."""
        return True


def or_null(*kinds: Kind) -> Either:
    """Return the kind of these values or null."""
    return Either((*kinds, Nothing()))


def one_or_each(kind: Kind) -> Either:
    """Return the kind of one value, or a list with one value per stage."""
    return Either((kind, ListOf(kind, at_least=1)))


def hint_of(kind: Kind, value: Any) -> str:
    """Say what was probably meant by ``value`` or why it is not of this kind; empty where there is nothing to say."""
    return getattr(kind, "hint", lambda _: "")(value)


def spelled(value: Any) -> str:
    """Format a value as it is typed on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{spelled(item)}' for key, item in value.items())}}}"
    return str(value)


def nearest(word: str, known: Sequence[str], likeness: float = 0.6) -> str | None:
    """Return the known word that was probably meant; ``likeness``, from 0 to 1, is how similar it must be."""
    return next(iter(get_close_matches(word, known, 1, likeness)), None)
