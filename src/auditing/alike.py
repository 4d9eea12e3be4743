"""Pictures that occur twice: the same file, the same pixels in another file, or nearly the same pixels."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from src.system.console import progress

THUMBNAIL = 16  # pixels a side of what pictures are compared by first
LIKELY, ALIKE = 0.99, 0.995  # correlation of thumbnails that are compared closely, of pictures that are nearly equal
FLAT = 3.0  # standard deviation in levels of 255 below which a picture has nothing to compare
MOST = 100_000  # pictures that are compared with each other; the number of pairs grows with its square
MOST_PAIRS = 200_000  # that are compared closely
BLOCK = 2_048

Pair = tuple[int, int]


def sets_of(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the positions of each key that occurs more than once; None is no key."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        if key is not None:
            places[key].append(place)
    return [same for same in places.values() if len(same) > 1]


def pairs_of(sets: Sequence[Sequence[int]]) -> Iterator[Pair]:
    """Yield every pair within each set."""
    for same in sets:
        yield from combinations(same, 2)


def thumbnails(images: Tensor) -> tuple[Tensor, Tensor]:
    """Shrink images ``[N, C, H, W]`` to grey ``[N, 16 * 16]``, standardised; and return their contrast ``[N]``."""
    parts = []
    for some in images.split(BLOCK):
        grey = some.float().mean(1, keepdim=True)
        size = [min(THUMBNAIL, side) for side in grey.shape[-2:]]
        parts.append(interpolate(grey, size, mode="bilinear", antialias=True).flatten(1))
    small = torch.cat(parts)
    spread, mean = torch.std_mean(small, 1, correction=0, keepdim=True)
    return (small - mean) / (spread * small.shape[1] ** 0.5).clamp_min(1e-6), spread[:, 0]


def nearly_equal(
    images: Tensor, chosen: Tensor, thumbs: Tensor, contrast: Tensor
) -> tuple[list[tuple[float, int, int]], str]:
    """Return correlation and positions of pairs of nearly equal pictures, the most alike first, and what was left out.

    Brightness and contrast may differ, and so may the file's kind, size and quality; a picture that is cropped, turned
    or mirrored is not found.

    Args:
        images: uint8 ``[N, C, H, W]``.
        chosen: those to compare, ``[M]``; the first 100,000 that are not flat are, up to 200,000 pairs of them.
        thumbs: of all images, ``[N, T]``.
        contrast: of these, ``[N]``.
    """
    chosen, left_out = chosen[contrast[chosen] >= FLAT], ""
    if len(chosen) > MOST:
        chosen, left_out = chosen[:MOST], f"only the first {MOST:,} images were compared with each other"
    of, likely, count = thumbs[chosen], [], 0
    for start in progress(range(0, len(chosen), BLOCK), "comparing pictures"):
        rows = of[start : start + BLOCK]
        alike = (rows @ of[start:].T).triu(1) >= LIKELY
        likely.append(alike.nonzero() + start)
        count += len(likely[-1])
        if count > MOST_PAIRS:
            left_out = f"only {MOST_PAIRS:,} of the pairs that may be were compared closely"
            break
    found = []
    pairs = chosen[torch.cat(likely)[:MOST_PAIRS]] if likely else torch.empty(0, 2, dtype=torch.long)
    for part in pairs.split(BLOCK // 8):
        left, right = (_standardised(images[side]) for side in part.T)
        found += zip((left * right).sum(1).tolist(), *part.T.tolist(), strict=True)
    return sorted((pair for pair in found if pair[0] >= ALIKE), reverse=True), left_out


def _standardised(images: Tensor) -> Tensor:
    flat = images.float().mean(1).flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-6)


def disagree(thumbs: Tensor, contrast: Tensor) -> tuple[np.ndarray, float]:
    """Return the correlation ``[N]`` of each thumbnail with the mean of all, and the median of these.

    A negative of pictures that are alike is the opposite of their mean; a flat picture has no correlation (nan).
    """
    usable = contrast >= FLAT
    mean = thumbs[usable].mean(0) if usable.any() else thumbs.mean(0)
    mean = mean / mean.norm().clamp_min(1e-6)
    agreement = torch.where(usable, thumbs @ mean, torch.nan).double().numpy()
    return agreement, float(np.nanmedian(agreement)) if usable.any() else 0.0
