"""What is wrong or worth knowing in a data set: each finding is a sentence with its number, and the images meant."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from src.auditing import alike, repeats
from src.auditing.evidence import Evidence, Finding

DEEP, FEW_LEVELS = 8, 64  # bits of a level; levels in use that are few for 8 bits
OPPOSITE = 0.25  # correlation with the mean image below whose negative a picture counts as one
WIDE = 0.05  # share of the area from which on a border is reported
COMMON = 0.5  # share of the pictures from which on that is how they are, not a fault of some


def findings(evidence: Evidence) -> list[Finding]:
    """Return all findings, problems first."""
    found = [finding for check in CHECKS for finding in check(evidence)]
    return sorted(found, key=lambda finding: not finding.problem)


def skipped(evidence: Evidence) -> Iterator[Finding]:
    """Files that could not be decoded."""
    bad = np.flatnonzero(~evidence.usable)
    if len(bad):
        yield Finding("skipped", f"{len(bad):,} files cannot be decoded and are left out", count=len(bad))


def inverted(evidence: Evidence) -> Iterator[Finding]:
    """Negatives among pictures that are alike."""
    agreement, typical = alike.disagree(*evidence.thumbs)
    agreement[~evidence.usable] = np.nan
    if typical < OPPOSITE:
        return
    opposite = np.flatnonzero(np.nan_to_num(agreement, nan=1.0) < -OPPOSITE)
    edges = _edge_levels(evidence.pool.images)
    usual = float(np.median(edges))
    # The border test: the edge of a negative is nearer to the usual one once it is inverted.
    opposite = opposite[np.abs(255 - edges[opposite] - usual) < np.abs(edges[opposite] - usual)]
    if len(opposite):
        order = opposite[np.argsort(agreement[opposite])]
        reasons = [f"correlation with the mean {agreement[i]:.2f}" for i in order]
        words = f"{len(order):,} images look like negatives of the others: invert or remove them"
        yield Finding("inverted", words, True, [(int(i),) for i in order], reasons, len(order))


def _edge_levels(images: Tensor) -> np.ndarray:
    """Return the mean level of the outermost pixels of each image ``[N]``."""
    sides = [
        part.float().mean((1, 2)) for part in (images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1])
    ]
    return torch.stack(sides).mean(0).numpy()


def blank(evidence: Evidence) -> Iterator[Finding]:
    """Pictures that show nothing."""
    contrast = evidence.thumbs[1].numpy()
    empty = np.flatnonzero((contrast < alike.FLAT) & evidence.usable)
    whole = np.array([float(evidence.pool.images[i].float().std(correction=0)) for i in empty.tolist()])
    empty, whole = empty[whole < alike.FLAT], whole[whole < alike.FLAT]
    if len(empty):
        reasons = [f"contrast {one:.1f} of 255" for one in whole]
        words = f"{len(empty):,} images are blank or nearly constant: remove them"
        yield Finding("blank", words, True, [(int(i),) for i in empty], reasons, len(empty))


def borders(evidence: Evidence) -> Iterator[Finding]:
    """Black or white borders."""
    yield from _of_some(
        evidence,
        "borders",
        [0.0 if one is None else one.border for one in evidence.originals or []],
        WIDE,
        f"have black or white borders of more than {100 * WIDE:.0f} % of their area: crop what shows nothing",
        lambda value: f"border {100 * value:.0f} %",
    )


def marks(evidence: Evidence) -> Iterator[Finding]:
    """Letters and markers."""
    yield from _of_some(
        evidence,
        "marks",
        [0.0 if one is None else float(one.marks) for one in evidence.originals or []],
        0,
        "may have letters or markers near an edge (small, saturated regions on a dark ground): look at them",
        lambda value: f"{value:.0f} bright mark{'s' if value > 1 else ''}",
    )


def _of_some(
    evidence: Evidence,
    kind: str,
    values: Sequence[float],
    above: float,
    words: str,
    reason: Callable[[float], str],
) -> Iterator[Finding]:
    """Report the images whose value is above a limit, with their share by class where there are classes."""
    numbers = np.array(values)
    chosen = np.flatnonzero(numbers > above)
    if not len(chosen):
        return
    order = chosen[np.argsort(-numbers[chosen], kind="stable")]
    share = len(chosen) / max(1, evidence.usable.sum())
    by_class = Counter(evidence.class_of(i) for i in chosen.tolist())
    in_all = Counter(evidence.class_of(i) for i in np.flatnonzero(evidence.usable).tolist())
    shares = {name: f"{100 * by_class[name] / count:.0f} % of {name}" for name, count in sorted(in_all.items()) if name}
    told = f" ({', '.join(shares.values())})" if 1 < len(shares) <= 10 else ""
    sentence = f"{len(chosen):,} of {int(evidence.usable.sum()):,} images{told} {words}"
    images, reasons = [(int(i),) for i in order], [reason(numbers[i]) for i in order]
    yield Finding(kind, sentence, bool(share < COMMON), images, reasons, len(chosen))


def depth(evidence: Evidence) -> Iterator[Finding]:
    """Fewer levels or bits in use than are stored."""
    files = [(i, one) for i, one in enumerate(evidence.originals or []) if one is not None]
    shallow = [(i, one) for i, one in files if one.depth == DEEP and one.levels <= FEW_LEVELS]
    if shallow:
        order = sorted(shallow, key=lambda file: file[1].levels)
        words = f"{len(order):,} files of 8 bits use {order[0][1].levels} to {order[-1][1].levels} of 256 grey levels"
        reasons = [f"{one.levels} levels" for _, one in order]
        yield Finding("levels", words, len(order) < COMMON * len(files), [(i,) for i, _ in order], reasons, len(order))
    if deep := [one for _, one in files if one.depth > DEEP and not one.colour and one.top is not None]:
        bits = Counter(max(1, one.top.bit_length()) for one in deep)
        used = ", ".join(f"{count:,} use {bit}" for bit, count in sorted(bits.items()))
        stored = "/".join(map(str, sorted({one.depth for one in deep})))
        mixed = "; a training reads all with one depth, so those with fewer are darker" if len(bits) > 1 else ""
        words = f"of {len(deep):,} grey files of {stored} bits {used} bits{mixed}"
        yield Finding("bits", words, len(bits) > 1 and max(bits) - min(bits) > 1, count=len(deep))


def colour(evidence: Evidence) -> Iterator[Finding]:
    """Grey pictures in colour files, and the other way round."""
    files = [one for one in evidence.originals or [] if one is not None]
    grey = sum(one.grey and one.colour for one in files)
    coloured = sum(not one.grey for one in files)
    channels = evidence.datamodule.channels
    if grey:
        wasted = channels == 3 and not coloured
        advice = ": data.channels=1 is enough" if wasted else ""
        words = f"{grey:,} of {len(files):,} files are stored in colour and show grey{advice}"
        yield Finding("grey", words, wasted, count=grey)
    if coloured and channels == 1:
        words = f"{coloured:,} of {len(files):,} files show colour, which data.channels=1 leaves out"
        yield Finding("colour", words, False, count=coloured)
    if turned := sum(one.turned for one in files):
        words = f"{turned:,} files are turned upright by their EXIF, which other programs may not do"
        yield Finding("turned", words, False, count=turned)


CHECKS = (
    *(repeats.same_file, repeats.same_pixels, repeats.nearly_the_same, repeats.patients),
    *(inverted, blank, borders, marks, depth, colour, skipped),
)
