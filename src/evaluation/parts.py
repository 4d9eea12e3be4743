"""The parts of an evaluation by name.

Every part carries the seed, the number of images, the checkpoint's hash and the data fingerprint; one that cannot be
computed says why under ``skipped``.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from src.errors import UserError
from src.evaluation.codes import latents, representation
from src.evaluation.likelihood import bound, elbo, reconstruction
from src.evaluation.samples import samples
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


def parts_of(wanted: str | Sequence[str]) -> list[str]:
    """Names of parts from one name or several.

    Raises:
        UserError: there is no such part.
    """
    names = [wanted] if isinstance(wanted, str) else [*wanted]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise UserError(f"parts={', '.join(unknown)}: choose from {', '.join(PARTS)}")
    return names


def evaluate(subject: Subject, options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The parts that ``options`` names, each called with its values, stamped with what they belong to."""
    stamp = {"seed": subject.seed, "checkpoint": subject.checkpoint, "data": subject.datamodule.fingerprint}
    results = {}
    for number, (name, values) in enumerate(options.items(), 1):
        log.info("%d/%d %s", number, len(options), name)
        results[name] = {**stamp, **PARTS[name](subject, **values)}
    return results
