"""Contact sheets: the pictures of many runs as one."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from src.exploration.writing import drawable, fonts

WIDTH = 256  # pixels of a picture
GAP = 10
TEXT = 14  # pixels of a line


def contact_sheet(pictures: Sequence[tuple[str, Path]], columns: int) -> Image.Image:
    """Pictures with their names below, row by row.

    Args:
        pictures: name and file of each, at least one.
        columns: how many side by side.
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
    """The text as far as it fits below a picture."""
    if font.getlength(text) <= WIDTH:
        return text
    while text and font.getlength(text + "…") > WIDTH:
        text = text[:-1]
    return text + "…"
