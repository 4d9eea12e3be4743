"""The parts of an evaluation by name.

Every part carries the seed, the number of images, the checkpoint's hash and the data fingerprint; one that cannot be
computed says why under ``skipped``.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from src.errors import UserError, whole_number
from src.evaluation.codes import latents, representation
from src.evaluation.likelihood import bound, elbo, reconstruction
from src.evaluation.samples import FEWEST, samples
from src.metrics.features import inception_features
from src.runs import flatten
from src.subject import Subject

log = logging.getLogger(__name__)

PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "elbo": elbo,
    "bound": bound,
    "latents": latents,
    "reconstruction": reconstruction,
    "samples": samples,
    "representation": representation,
}


# Smallest value of each option; None may stand for all images.
LEAST = {
    "bound": {"samples": 1, "images": 1},
    "latents": {"components": 1},
    "samples": {"images": FEWEST, "bootstrap": 2, "components": 1},
    "representation": {"train_images": 2},
}


def check(options: dict[str, dict[str, Any]]) -> None:
    """See that every part can be computed with its values, before the first is.

    Raises:
        UserError: names the key.
    """
    for part, least in LEAST.items():
        for name, at_least in least.items():
            value = options.get(part, {}).get(name, at_least)
            if (part, name, value) != ("bound", "images", None):
                whole_number(f"{part}.{name}", value, at_least)
    inception_features(options.get("samples", {}).get("inception", False))


def parts_of(wanted: str | Sequence[str]) -> list[str]:
    """Names of parts from one name or several.

    Raises:
        UserError: there is no such part.
    """
    names = [*PARTS] if wanted == "all" else [wanted] if isinstance(wanted, str) else [*(wanted or [])]
    unknown = [str(name) for name in names if name not in PARTS]
    if unknown or not names:
        raise UserError(f"parts={', '.join(unknown)}: choose all, or from {', '.join(PARTS)}")
    return names


def evaluate(subject: Subject, options: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts that ``options`` names, each called with its values and stamped with what it belongs to.

    Raises:
        UserError: a value is impossible, or a figure is not finite.
    """
    check(options)
    stamp = {"seed": subject.seed, "checkpoint": subject.checkpoint, "data": subject.datamodule.fingerprint}
    for number, (name, values) in enumerate(options.items(), 1):
        log.info("%d/%d %s", number, len(options), name)
        figures = PARTS[name](subject, **values)
        if broken := [key for key, value in flatten(figures) if not _finite(value)]:
            raise UserError(f"{name}.{broken[0]} is not finite: these are the weights of a training that diverged")
        yield name, {**stamp, **figures}


def _finite(value: Any) -> bool:
    """Whether all numbers in it are."""
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
