"""Every picture of a trained model by name: predictor in, figure out.

Training ends with :data:`SHORT`; ``python -m src.explore`` draws them all.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from src.exploration import overview, traversals
from src.models.predictor import Predictor
from src.system.errors import NotApplicable, UserError
from src.system.files import whole_file
from src.system.keys import KEYS, check

log = logging.getLogger(__name__)

PICTURES: dict[str, Callable[[Predictor], Figure]] = {
    "reconstructions": overview.reconstructions,
    "samples": overview.samples,
    "losses": overview.losses,
    "samples_from_mixture": overview.samples_from_mixture,
    "rates": overview.rates,
    "scatter": overview.scatter,
    "manifold": traversals.manifold,
    "histogram": overview.histogram,
    "directions": traversals.directions,
    "traversals": traversals.traversals,
    "plane": traversals.plane,
    "interpolations": traversals.interpolations,
    "class_means": overview.class_means,
    "neighbours": overview.neighbours,
}
SHORT = ("reconstructions", "samples", "losses")  # what training ends with


def choose(wanted: str | Sequence[str]) -> list[str]:
    """Return names of pictures from ``all``, one name or several.

    Raises:
        UserError: there is no such picture.
    """
    names = [wanted] if isinstance(wanted, str) else [*wanted]
    check("figures", wanted if isinstance(wanted, str) else names, KEYS["explore"]["figures"])
    return [*PICTURES] if wanted == "all" else names


def draw(predictor: Predictor, names: Iterable[str], explicit: bool) -> Iterator[tuple[str, Figure]]:
    """Yield name and figure of each picture; one that this model or data cannot have is left out with a log line.

    Args:
        predictor: the model and its data.
        names: of the pictures.
        explicit: whether the user asked for them by name.

    Raises:
        UserError: a picture that was asked for by name is not possible.
    """
    for name in names:
        try:
            yield name, PICTURES[name](predictor)
        except NotApplicable as reason:
            if explicit:
                raise UserError(f"figures={name}: {reason}") from reason
            log.info("no %s: %s", name, reason)


def write(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight")


def remove_other_pages(folder: Path, names: Sequence[str]) -> None:
    """Remove pages of an earlier call of the same kind that this one has not written: there were more pictures."""
    kind = names[0].partition("_")[0]
    for path in folder.glob(f"{kind}*.png"):
        if path.stem not in names:
            path.unlink()
