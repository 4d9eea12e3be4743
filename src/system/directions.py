"""In which direction a metric improves, for checkpoints, early stopping, schedules, searches and reports."""

import math
from collections.abc import Mapping

from src.system.errors import UserError

# Last parts of metric names, as in val/elbo.
BETTER_BELOW = ("loss", "distortion", "rate", "bits_per_dim")
BOUNDS = ("elbo", "iwae", "miwae", "piwae", "ciwae")
BETTER_ABOVE = (*BOUNDS, "active_latents")
COMPARABLE = tuple(f"val/{name}" for name in (*BETTER_ABOVE, *BETTER_BELOW))


def natural_mode(metric: str) -> str | None:
    """Return ``min`` or ``max`` for a metric of this project, None for any other."""
    name = metric.rpartition("/")[2]
    return "min" if name in BETTER_BELOW else "max" if name in BETTER_ABOVE else None


def loss_is_elbo(figures: Mapping[str, float], split: str) -> bool:
    """Return whether the loss among the figures of an epoch is the negative elbo, or is not known there to be another.

    >>> [loss_is_elbo({"val/loss": loss, "val/elbo": -90.0}, "val") for loss in (90.0, 88.0)]
    [True, False]
    """
    loss, elbo = figures.get(f"{split}/loss"), figures.get(f"{split}/elbo")
    return None in (loss, elbo) or math.isclose(loss, -elbo, rel_tol=1e-6)


def as_printed(metric: str, elbo: str) -> tuple[str, int]:
    """Return a metric's name and sign in tables and figures, where papers print the −elbo, and other bounds likewise.

    Args:
        metric: such as ``val/elbo``.
        elbo: the name of the elbo.
    """
    split, _, name = metric.rpartition("/")
    if name not in BOUNDS:
        return metric, 1
    return f"{split} −{elbo.replace('elbo', name)}".strip(), -1  # elbo may be a pseudo-elbo, or that of features


def printed(metric: str, value: float, elbo: str = "elbo") -> str:
    """Format a metric as papers print it: ``val −elbo 96.7300``.

    Args:
        metric: such as ``val/elbo``.
        value: its value.
        elbo: the name of the elbo.
    """
    name, sign = as_printed(metric, elbo)
    return f"{name} {sign * value:.4f}"


def mode_of(metric: str, mode: str | None, key: str = "mode") -> str:
    """Return the mode in which to monitor a metric.

    Args:
        metric: such as ``val/elbo``.
        mode: ``min`` or ``max``; None derives it from a metric of this project.
        key: the config key of the mode, for messages.

    Raises:
        UserError: the mode contradicts the metric, or cannot be derived from it.
    """
    natural = natural_mode(metric)
    if mode is None and natural is None:
        raise UserError(f"{key}: say min or max, it does not follow from the metric {metric}")
    if natural is not None and mode not in (None, natural):
        way = "smaller" if natural == "min" else "larger"
        raise UserError(f"{key}={mode} would keep the worst: {metric} is the better the {way}; give {key}={natural}")
    return mode or natural
