"""Text in figures: users' names are drawn as they are written, in fonts that have their characters.

Names of classes and files, values and keys come from users: a dollar sign starts no formula, a leading underscore
hides nothing, and bytes that are not text and characters that no font has are drawn as escapes.
"""

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from math import isfinite
from typing import Any
from unicodedata import east_asian_width

import matplotlib
from matplotlib import figure
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter, ScalarFormatter
from matplotlib.transforms import Bbox

from src.system.files import readable

log = logging.getLogger(__name__)

EMPTY_GLYPHS = re.compile("last ?resort|adobe ?blank", re.IGNORECASE)  # fonts that draw every character as a box
LONGEST_NAME = 24  # letters of a name in a label
NUMBERED = 4  # letters of a label: where there are no more, names that look the same are numbered
MOST_SHOWN = 5  # characters in the warning
POINT = 1 / 72  # inches
BESIDE = 7  # points between a marker's middle and its name

_families: dict[str, str] = {}  # a font family for each character that the default font lacks
_without: set[str] = set()  # characters that no font has


class Figure(figure.Figure):
    """A Matplotlib figure that draws texts as they are written.

    Only what Matplotlib itself writes is read as a formula: the powers of ten along a logarithmic axis.
    """

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure; Matplotlib also calls this to save or to measure it."""
        numbers = set()
        for axis in self.findobj(Axis):
            if isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter):  # names or formatted values
                written = axis.get_major_formatter().format_ticks(axis.get_majorticklocs())
                axis.set_ticklabels([drawable(label) for label in written])
            else:
                if isinstance(axis.get_major_formatter(), ScalarFormatter):
                    axis.get_major_formatter().set_useOffset(False)  # readers overlook an offset in the corner
                numbers.update((axis.offsetText, *axis.get_ticklabels(which="both")))
        for text in self.findobj(Text):
            if text not in numbers:
                text.set(text=drawable(text.get_text()), parse_math=False, usetex=False)
                text.set_fontfamily(fonts(text.get_text(), text.get_fontfamily()))
        with warnings.catch_warnings():  # a busy machine is no fault of the figure
            warnings.filterwarnings("ignore", "Creating legend with loc=.best. can be slow")
            super().draw(renderer)


def legend(axes: Axes, handles: Sequence[Artist], names: Sequence[str], **style: Any) -> Legend:
    """Add a legend with all of these names.

    Matplotlib itself leaves out labels that begin with an underscore, until the deprecation of
    https://github.com/matplotlib/matplotlib/pull/26190 has run out.
    """
    made = axes.legend(handles, [""] * len(handles), **style)
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_text(name)
    return made


def name_points(figure: Figure, points: Mapping[Axes, Sequence[tuple[float, float, str]]], **style: Any) -> None:
    """Write names beside points without covering a marker or another text; leave out names without room.

    Args:
        figure: is complete except for its legends, which are placed around what is there.
        points: x, y and name of each point by panel; the first ones choose first.
        style: keyword arguments of the texts.
    """
    at_their_point = {"xytext": (0, 0), "textcoords": "offset points", "ha": "left", "va": "bottom"}
    written = {
        axes: [axes.annotate(name, (x, y), **at_their_point, **style) for x, y, name in named if isfinite(x + y)]
        for axes, named in points.items()
    }
    for text in chain(*written.values()):
        text.set_in_layout(False)
    figure.draw_without_rendering()  # sets the positions of everything, in dots
    point = POINT * figure.dpi
    for axes, texts in written.items():
        taken = [*_markers(axes), *(text.get_window_extent() for text in axes.texts if text not in texts)]
        for text in texts:
            x, y = axes.transData.transform(text.xy)
            free = (box for box in _beside(x, y, text.get_window_extent(), point) if _fits(box, axes, taken))
            box = next(free, None)
            if box is None:
                text.remove()
            else:
                text.set_position(((box.x0 - x) / point, (box.y0 - y) / point))
                taken.append(box)


def _markers(axes: Axes) -> list[Bbox]:
    """Return the boxes of a panel's markers, except mere dots."""
    boxes = []
    for line in axes.lines:
        if line.get_marker() not in ("None", ".", ""):
            half = 0.5 * line.get_markersize() * POINT * axes.figure.dpi
            spots = axes.transData.transform(line.get_xydata())
            boxes += [Bbox([spot - half, spot + half]) for spot in spots if isfinite(spot.sum())]
    return boxes


def _beside(x: float, y: float, size: Bbox, point: float) -> Iterator[Bbox]:
    """Yield boxes for a text of some size beside a position (in dots), the best first."""
    for right, up in ((1, 1), (1, 0), (-1, 1), (0, 1), (1, -1), (-1, 0), (0, -1), (-1, -1)):
        gap = (BESIDE if 0 in (right, up) else 0.6 * BESIDE) * point
        left = x + gap if right > 0 else x - gap - size.width if right < 0 else x - size.width / 2
        low = y + gap if up > 0 else y - gap - size.height if up < 0 else y - size.height / 2
        yield Bbox.from_bounds(left, low, size.width, size.height)


def _fits(box: Bbox, axes: Axes, taken: Sequence[Bbox]) -> bool:
    """Return whether a box is inside a panel and overlaps no other."""
    inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
    return inside and not box.count_overlaps(taken)


def short(name: str, longest: int) -> str:
    """Cut a user's name for a label in its middle where it is long; quote it where nothing of it would be visible.

    Args:
        name: the name.
        longest: how wide it may be, in Latin letters.
    """
    return _cut(_visible(name), longest)


def distinct(names: Sequence[str], longest: int) -> list[str]:
    """Cut names as :func:`short` does, but where they agree if different ones would look the same.

    Only names that are too alike for ``longest`` letters end in a number instead.
    """
    return _apart([_visible(name) if name else "" for name in names], longest)


def _apart(texts: Sequence[str], longest: int) -> list[str]:
    labels = [_cut(text, longest) for text in texts]
    for label in set(labels):
        alike = sorted({text for text, cut in zip(texts, labels, strict=True) if cut == label})
        if len(alike) == 1:
            continue
        if longest <= NUMBERED:
            new = [f"…{number}" for number in range(1, len(alike) + 1)]
        else:
            begin = _common_start(alike)
            end = _common_start([text[begin:][::-1] for text in alike])
            middles = [text[begin : len(text) - end] for text in alike]
            room = max(longest - max(map(letters, middles)), NUMBERED)
            head, tail = _cut(alike[0][:begin], room // 2), _cut(alike[0][len(alike[0]) - end :], room - room // 2)
            middles = _apart(middles, longest - letters(head) - letters(tail))
            new = [f"{head}{middle}{tail}" for middle in middles]
        renamed = dict(zip(alike, new, strict=True))
        labels = [renamed.get(text, cut) for text, cut in zip(texts, labels, strict=True)]
    return labels


def _common_start(texts: Sequence[str]) -> int:
    """Return how many characters different texts have in common at their beginning."""
    columns = enumerate(zip(*texts, strict=False))
    return next((i for i, column in columns if len({*column}) > 1), min(map(len, texts)))


def _visible(name: str) -> str:
    return drawable(name if any(c.isprintable() and not c.isspace() for c in name) else repr(name))


def _cut(text: str, longest: int) -> str:
    if letters(text) <= longest:
        return text
    while letters(text) >= max(longest, 2):
        middle = len(text) // 2
        text = text[:middle] + text[middle + 1 :]
    middle = (len(text) + 1) // 2
    return f"{text[:middle]}…{text[middle:]}"


def letters(text: str) -> int:
    """Return the width of the widest line of a text, in Latin letters."""
    return max(sum(2 if east_asian_width(c) in "WF" else 1 for c in line) for line in text.split("\n"))


def drawable(text: str) -> str:
    """Replace what cannot be drawn by Python's escapes: ``\\udce9``, ``\\t``, ``\\u732b`` where no font has 猫.

    The first text with characters that no font has logs a one-line warning.
    """
    text = readable(text)
    if lacking := {c for c in text if c != "\n" and ord(c) not in _default()} - _families.keys() - _without:
        _find_fonts(lacking)
    return "".join(c.encode("unicode_escape").decode() if c in _without else c for c in text)


def fonts(text: str, families: Sequence[str]) -> list[str]:
    """Return font families that together have all characters of a :func:`drawable` text; ``families`` come first."""
    return [*dict.fromkeys([*families, *(_families[c] for c in text if c in _families)])]


@cache
def _default() -> frozenset[int]:
    """Return the characters of the default font."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _find_fonts(characters: set[str]) -> None:
    """Find as few fonts as possible for characters that the default font lacks; log which ones no font has."""
    has = {family: characters & found for family in _installed() if (found := _characters(family))}
    left = set(characters)
    while left and has:
        best = max(sorted(has), key=lambda family: (len(has[family] & left), "Sans" in family))
        if not has[best] & left:
            break
        _families.update(dict.fromkeys(has[best] & left, best))
        left -= has[best]
    shown = sorted(c for c in left if c.isprintable())
    if shown and not any(c.isprintable() for c in _without):
        some = "".join(shown[:MOST_SHOWN]) + ("…" if len(shown) > MOST_SHOWN else "")
        log.warning(
            "no installed font has %s: figures show %s and the like; install a font of that script, such as Noto Sans",
            some,
            shown[0].encode("unicode_escape").decode(),
        )
    _without.update(left)


def _installed() -> list[str]:
    """Return the installed families with an upright font of regular weight, without Matplotlib's own formula fonts."""
    own = matplotlib.get_data_path()
    fonts = (font for font in fontManager.ttflist if not font.fname.startswith(own))
    plain = {font.name for font in fonts if font.style == "normal" and font.weight in (400, "normal", "regular")}
    return sorted(name for name in plain if not EMPTY_GLYPHS.search(name))


def _characters(family: str) -> set[str]:
    """Return the characters of a font, none where its file cannot be read."""
    try:
        font = get_font(findfont(FontProperties(family=[family]), fallback_to_default=False))
        return {chr(code) for code in font.get_charmap()}
    except (OSError, RuntimeError, ValueError):
        return set()
