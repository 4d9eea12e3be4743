"""The parts of an evaluation by name.

Every part records the seed, the number of images, the checkpoint's hash and the data fingerprint. A part that cannot be
computed says why under ``skipped``, one with fewer samples than the full number how to get all under ``reduced``.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from src.evaluation.budget import settle
from src.evaluation.feature_networks import inception_features
from src.evaluation.latents import latents, representation
from src.evaluation.likelihood import bound, elbo, reconstruction
from src.evaluation.samples import samples
from src.models.predictor import Predictor
from src.runs.folder import flatten
from src.system import keys
from src.system.errors import NotApplicable, UserError

log = logging.getLogger(__name__)

KEYS = keys.KEYS["evaluate"]

# The expensive parts come last, so that an interrupted evaluation has the others.
PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "elbo": elbo,
    "latents": latents,
    "reconstruction": reconstruction,
    "representation": representation,
    "samples": samples,
    "bound": bound,
}


def parts_of(wanted: str | Sequence[str]) -> list[str]:
    """Return the names of parts that ``all``, one name or several mean.

    Raises:
        UserError: there is no such part.
    """
    names = [wanted] if isinstance(wanted, str) else [*wanted]
    keys.check("parts", wanted if isinstance(wanted, str) else names, KEYS["parts"])
    return [*PARTS] if wanted == "all" else names


def evaluate(
    predictor: Predictor, options: dict[str, dict[str, Any]], budget: float | str | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Compute the parts that ``options`` names and yield name and figures of each, with seed and hashes.

    Args:
        predictor: the model and images that are judged.
        options: arguments of each part; ``auto`` for those that ``budget`` chooses.
        budget: see :func:`src.evaluation.budget.settle`.

    Raises:
        UserError: a value is impossible (raised before the first part), or a figure is not finite.
    """
    for part, values in options.items():
        for name, value in values.items():
            keys.check(f"{part}.{name}", value, KEYS[f"{part}.{name}"])
    inception_features(options.get("samples", {}).get("inception", False))
    stamp = {"seed": predictor.seed, "checkpoint": predictor.checkpoint, "data": predictor.datamodule.fingerprint}
    options, reduced = settle(predictor, options, budget)
    for number, (name, values) in enumerate(options.items(), 1):
        log.info("%d/%d %s", number, len(options), name)
        try:
            figures = PARTS[name](predictor, **values) | ({"reduced": reduced[name]} if name in reduced else {})
        except NotApplicable as reason:
            figures = {"skipped": str(reason)}
        if broken := [key for key, value in flatten(figures) if not _finite(value)]:
            raise UserError(
                f"{name}.{broken[0]} is not a finite number: python -m src.explore figures=[losses] shows whether the "
                "training diverged"
            )
        yield name, {**stamp, **figures}


def _finite(value: Any) -> bool:
    """Return whether a number, or all numbers of a list, are finite."""
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
