"""Which way a metric gets better: what chooses checkpoints, stops early, lowers a rate or steers a search asks here."""

from src.system.errors import UserError

# By the last part of a metric's name, as in val/elbo.
BETTER_BELOW = ("loss", "distortion", "rate", "bits_per_dim")
BETTER_ABOVE = ("elbo", "active_latents")
COMPARABLE = tuple(f"val/{name}" for name in (*BETTER_ABOVE, *BETTER_BELOW))


def natural_mode(metric: str) -> str | None:
    """``min`` where less of a metric is better, ``max`` where more is; None for a metric that is not ours."""
    name = metric.rpartition("/")[2]
    return "min" if name in BETTER_BELOW else "max" if name in BETTER_ABOVE else None


def as_printed(metric: str, elbo: str) -> tuple[str, int]:
    """What to call the metric that points are compared by, and the sign of its numbers: papers print the −elbo.

    Args:
        metric: its name, such as ``val/elbo``.
        elbo: what to call the elbo.
    """
    split, _, name = metric.rpartition("/")
    return (f"{split} −{elbo}".strip(), -1) if name == "elbo" else (metric, 1)


def printed(metric: str, value: float, elbo: str = "elbo") -> str:
    """A metric's name and value for people, who know the −elbo from papers: ``val −elbo 96.7300``.

    Args:
        metric: its name, such as ``val/elbo``.
        value: of it.
        elbo: what to call the elbo.
    """
    name, sign = as_printed(metric, elbo)
    return f"{name} {sign * value:.4f}"


def mode_of(metric: str, mode: str | None, key: str = "mode") -> str:
    """The mode in which a metric is monitored: its own, or for a metric that is not ours the one that is given.

    Args:
        metric: its name, such as ``val/elbo``.
        mode: ``min`` or ``max`` as it was given; None where it follows from the metric.
        key: what to call it before people.

    Raises:
        UserError: the mode contradicts the metric, or there is none to follow from it.
    """
    natural = natural_mode(metric)
    if mode is None and natural is None:
        raise UserError(f"{key}: say min or max, it does not follow from the metric {metric}")
    if natural is not None and mode not in (None, natural):
        way = "smaller" if natural == "min" else "larger"
        raise UserError(f"{key}={mode} would keep the worst: {metric} is the better the {way}; give {key}={natural}")
    return mode or natural
