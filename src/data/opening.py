"""Open any file that holds a picture: those that Pillow knows, and DICOM."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from src.data.bad import Bad
from src.data.dicom import BYTE, Dicom, begins_as_dicom, read
from src.system.errors import one_line


class Opened(NamedTuple):
    """An open file."""

    image: Image.Image  # not read yet where Pillow opens it: a JPEG can be decoded at a fraction of its size
    deep: bool  # whether its grey or its colours have 16 bits
    dicom: Dicom | None = None  # what else a DICOM file says; None for other files


@contextmanager
def opened(data: bytes) -> Iterator[Opened]:
    """Open the content of a file for a ``with`` statement, whose own errors are those of the file too.

    Raises:
        Bad: it is no picture, or cannot be decoded.
    """
    try:
        if begins_as_dicom(data):
            found = read(data)
            yield Opened(found.image, found.bits > BYTE, found)
        else:
            with Image.open(io.BytesIO(data)) as image:
                yield Opened(image, any(";16" in str(tile) for tile in getattr(image, "tile", ())))
    except (Bad, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        count, limit = (int(number) for number in re.findall(r"\d+", str(error))[:2])
        raise Bad(f"it has {count:,} pixels, more than the {limit:,} that Pillow takes. Make it smaller") from error
    except UnidentifiedImageError as error:
        raise Bad("it is no image that Pillow knows, and no DICOM file. Repair or remove it") from error
    except Exception as error:  # decoders raise anything
        usual = isinstance(error, OSError | ValueError | SyntaxError)
        raise Bad(f"{(usual and str(error) and one_line(error)) or repr(error)}. Repair or remove it") from error
