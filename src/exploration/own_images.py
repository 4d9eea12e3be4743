"""A user's own pictures, prepared as the run's images."""

import logging
import os
import re
from glob import glob
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from src.data.base import ImageDataModule
from src.data.decoding import decode_all
from src.data.layout import list_images
from src.data.picture import Decoded, Treatment
from src.exploration.writing import distinct
from src.system.errors import UserError
from src.system.files import readable

log = logging.getLogger(__name__)

COLUMNS, ROWS = 6, 3  # pictures in a figure; wide enough for their names
LONGEST = 20  # letters of a file name below a picture
LONGEST_FOLDER = 40  # letters of the name of a folder of figures


class Pictures(NamedTuple):
    """Decoded files. N pictures."""

    names: list[str]
    levels: Tensor  # uint8 [N, C, H, W]
    x: Tensor  # [N, C, H, W], what the model sees of them
    folder: str  # name of the folder of their figures, different for different places
    inverted: bool = False

    @property
    def captions(self) -> list[str]:
        """File names ``[N]`` for a figure."""
        return distinct([Path(name).name for name in self.names], LONGEST)

    @property
    def remark(self) -> str:
        """What a title must add after the word for what it shows."""
        return " of inverted pictures" if self.inverted else ""

    def pages(self, stem: str) -> list[tuple[str, slice]]:
        """Return the name of each figure and which pictures are in it: ``stem`` for one, else ``stem_1``, ..."""
        starts = range(0, len(self.names), COLUMNS * ROWS)
        return [
            (stem if len(starts) == 1 else f"{stem}_{page}", slice(start, start + COLUMNS * ROWS))
            for page, start in enumerate(starts, 1)
        ]


def read(where: str | list[str], datamodule: ImageDataModule, invert: bool = False) -> Pictures:
    """Read a file, a folder, a glob or a list of them with the preprocessing of the run's data.

    Files that cannot be decoded are left out, with a warning each.

    Args:
        where: the places.
        datamodule: the run's data.
        invert: whether to take the negative of each picture.

    Raises:
        UserError: there are no pictures, or none can be decoded.
    """
    places = [str(place) for place in ([where] if isinstance(where, str | int) else where)]
    files = [file for place in places for file in _files(place)]
    levels: dict[int, Tensor] = {}

    def take(i: int, decoded: Decoded) -> None:
        levels[i] = torch.from_numpy(decoded.pixels.copy())

    treatment = Treatment.of(datamodule.pool.treatment)._replace(invert=invert)
    found = decode_all(files, datamodule.image_size, datamodule.channels, take, lambda i, reason: None, treatment)
    wrong = [f"cannot decode {readable(files[i])}: {reason}" for i, reason in found.bad.items()]
    if not levels:
        more = f" ({len(wrong) - 1} more cannot be decoded either)" if len(wrong) > 1 else ""
        raise UserError(f"images={where}: {wrong[0]}{more}")
    for line in wrong:
        log.warning("left out: %s", line)
    for note in found.notes:
        log.info("images: %s", note)
    pixels = torch.stack([levels[i] for i in sorted(levels)])
    x = datamodule.scale_alone(pixels, datamodule.seed)
    return Pictures([readable(files[i]) for i in sorted(levels)], pixels, x, _folder(places, invert), invert)


def _folder(places: list[str], invert: bool) -> str:
    """Return a folder name for the figures of some places: readable, and different for different places."""
    paths = [Path(os.path.abspath(Path(place).expanduser())) for place in places]
    first = paths[0]
    words = (re.sub(r"\W+", "-", readable(name)).strip("-") for name in (first.stem, *(p.name for p in first.parents)))
    name = next(filter(None, words), "root")[:LONGEST_FOLDER]
    more = f"-and-{len(paths) - 1}-more" if len(paths) > 1 else ""
    place = blake2b("\0".join(map(readable, paths)).encode(), digest_size=3).hexdigest()
    return f"{name}{more}-{place}{'-inverted' if invert else ''}"


def _files(place: str) -> list[Path]:
    """List the picture files of a place.

    Raises:
        UserError: there are none.
    """
    path, notes = Path(place).expanduser(), []
    if path.is_dir():
        names, notes = list_images(path)
        files = [path / name for name in names]
    else:
        files = [path] if path.is_file() else [Path(f) for f in sorted(glob(str(path), recursive=True))]
        files = [f for f in files if f.is_file()]
    if not files:
        found = f" ({'; '.join(notes)})" if notes else ""
        how = "give a file, a folder or a glob such as 'scans/*.png'"
        raise UserError(f"images={readable(place)}: no picture there{found}; {how}")
    for note in notes:
        log.info("images=%s: %s", readable(place), note)
    return files
