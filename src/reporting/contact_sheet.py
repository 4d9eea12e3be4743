"""The contact sheet: the pictures of many runs, side by side on the page and as one file."""

import base64
import io
import logging
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pandas as pd
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from src.exploration.writing import drawable, fonts
from src.reporting.levels import BITS
from src.reporting.results import Results
from src.reporting.words import configuration, elbo_name, number

log = logging.getLogger(__name__)

WIDTH = 256  # pixels of a picture
GAP = 10
TEXT = 14  # pixels of a line
MOST_COLUMNS = 6
LARGEST_STRIP, TALLEST = 2**22, 4  # pixels; height over width


def tiles(results: Results) -> list[dict[str, str]]:
    """Return name, numbers and picture of each point, in grid order, for the page."""
    return [_tile(results, row) for _, row in results.table.iterrows()]


def _tile(results: Results, row: pd.Series) -> dict[str, str]:
    strip = Path(row.path) / "figures" / "strip.png"
    return {
        "point": row.point,
        "what": configuration(row, results.keys, results.names) or row.point,
        "status": row.status,
        "figures": _figures(row),
        "path": str(strip),
        "picture": _embedded(strip),
    }


def _figures(row: pd.Series) -> str:
    """Return what a point was tested with: its −elbo, in bits where points of several likelihoods compare in them.

    A model without an elbo has its distortion.
    """
    elbo = elbo_name(row)
    if pd.notna(row.test_elbo):
        if row.compared_by == BITS and pd.notna(row.bits_per_dim):
            return f"{number(row.bits_per_dim)} bits per dimension"
        return f"−{elbo} {number(-row.test_elbo)}"
    if pd.notna(row.test_distortion):
        return f"{elbo.replace('elbo', 'distortion')} {number(row.test_distortion)}"
    return row.error if isinstance(row.error, str) else "not tested"


def columns_of(results: Results) -> int:
    """Return how many points are side by side: a row of the grid, where that is not too wide."""
    typed = [key for key in results.plan.swept if key in results.table] or results.keys
    last = results.table[typed[-1]].nunique() if typed else 1  # what varies fastest in a grid
    return last if 1 < last <= MOST_COLUMNS else min(4, len(results.table))


def _embedded(path: Path) -> str:
    """Return a picture as a data URL; empty where it cannot be read, or is too large to be a strip."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow's, of pictures that may be bombs
            image = Image.open(path)
        with image:
            if image.width * image.height > LARGEST_STRIP or image.height > TALLEST * image.width:
                raise ValueError("it is no strip")
            buffer = io.BytesIO()
            image.convert("L" if _is_grey(image) else "RGB").save(buffer, "PNG", optimize=True)
    except Exception as error:  # whatever a damaged picture makes Pillow raise, a bomb among them
        log.debug("%s: %s", path, error)
        return ""
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = image.convert("RGB").split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


def contact_sheet(pictures: Sequence[tuple[str, Path]], columns: int) -> Image.Image:
    """Draw pictures with their names below, row by row.

    Args:
        pictures: name and file of each, at least one.
        columns: pictures side by side.
    """
    tiles = []
    for name, path in pictures:
        with Image.open(path) as image:
            height = max(1, round(image.height * WIDTH / image.width))
            way = Image.Resampling.NEAREST if image.width <= WIDTH else Image.Resampling.LANCZOS
            tiles.append((name, image.convert("RGB").resize((WIDTH, height), way)))
    tall = max(tile.height for _, tile in tiles) + TEXT + GAP
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (WIDTH + GAP) + GAP, rows * tall + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (name, tile) in enumerate(tiles):
        x, y = GAP + place % columns * (WIDTH + GAP), GAP + place // columns * tall
        sheet.paste(tile, (x, y))
        text = " ".join(drawable(name).splitlines())
        font = _font(fonts(text, FontProperties().get_family())[-1])
        draw.text((x, y + tile.height + 1), _cut(text, font), fill="black", font=font)
    return sheet


@cache
def _font(family: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(findfont(FontProperties(family=[family]))), 11)


def _cut(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Cut a text to the width of a picture."""
    if font.getlength(text) <= WIDTH:
        return text
    while text and font.getlength(text + "…") > WIDTH:
        text = text[:-1]
    return text + "…"
