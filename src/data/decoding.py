"""From many image files to pixels: decode them in parallel, and say what was found in them."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from src.data.bad import Bad
from src.data.picture import DEEPEST, DEPTHS, USUAL, Decoded, Treatment, decode, number
from src.system.console import progress
from src.system.machine import processors

AT_A_TIME = 32  # files that a thread takes at once, at most; one by one, threads wait for each other
DIM = 64  # levels of 255 below which files look as if their 14 bits or fewer were read as 16


class Found(NamedTuple):
    """Facts about several files besides their pixels."""

    depth: int | None  # bits that grey of more than 8 bits is read with; None if no file has such grey, or by `span`
    largest: float | None  # grey value of those files
    deep: int  # how many these are
    brightest: int | None  # level of the upper 8 bits of files with 16 bits of colour
    transparent: int  # files with transparent parts
    frames: int  # files with more than the one frame that is taken
    bad: dict[int, str]  # position of each file that cannot be decoded: why, and what to do
    span: Sequence[float] | None = None  # least and largest value that such grey is read with, in place of a depth
    lowest: float | None = None  # grey value of those files
    patients: dict[int, str] = {}  # position of each DICOM file with a patient's ID: its hash  # noqa: RUF012
    unwindowed: int = 0  # DICOM files that do not say which of their grey values to show

    @property
    def notes(self) -> list[str]:
        """What a user should know about the files, as sentences."""
        notes = []
        if self.span is not None and self.deep:
            low, high = (number(end) for end in self.span)
            notes.append(f"grey of more than 8 bits read with one range, {low} to {high}: {self.deep:,} files")
            if self.lowest < self.span[0] or self.largest > self.span[1]:
                notes[-1] += f"; they go from {number(self.lowest)} to {number(self.largest)} and are clipped"
        elif self.deep:
            notes.append(
                f"grey of more than 8 bits read as {self.depth}-bit: {self.deep:,} files, up to {self.largest:,}"
            )
        if self.unwindowed:
            notes.append(
                f"DICOM without a window, shown with all values that its bits can store: {self.unwindowed:,} files"
            )
        if self.brightest is not None and self.brightest < DIM:
            notes.append(
                f"16-bit colour uses levels up to {self.brightest} of 255 and is near black: if these files hold fewer "
                "bits, save them with 8"
            )
        if self.transparent:
            notes.append(f"transparent parts laid on white: {self.transparent:,} images")
        if self.frames:
            notes.append(f"first of several frames taken: {self.frames:,} files")
        return notes

    @property
    def treatment(self) -> dict[str, Any]:
        """What was done to the pixels besides resizing, which other files may not need."""
        read_with = {"depth": self.depth} if self.span is None else {"range": [*self.span]}
        return (read_with if self.deep else {}) | ({"transparency": "on white"} if self.transparent else {})


def decode_all(
    paths: Sequence[str | Path],
    size: int,
    channels: int,
    take: Callable[[int, Decoded], None],
    refuse: Callable[[int, str], None],
    treatment: Treatment = USUAL,
) -> Found:
    """Decode files in parallel, grey of more than 8 bits with the same range for all.

    Args:
        paths: the files.
        size: side of the images, in pixels.
        channels: 1 or 3.
        take: is called with position and content of each file, in any thread; a second call replaces the first.
        refuse: is called with position and reason of a file that cannot be decoded; what it raises ends the decoding.
        treatment: what is done to all of them. Where it gives no range of grey, it is found in the files: the fewest
            of 8, 10, 12, 14 and 16 bits that hold all values or, if some are no whole numbers of 16 bits, the least
            and the largest of them.
    """
    facts: dict[int, Decoded] = {}
    bad: dict[int, str] = {}

    def work(i: int, how: Treatment) -> None:
        try:
            decoded = decode(paths[i], size, channels, how)
        except Bad as error:
            bad[i] = str(error)
            refuse(i, bad[i])
            return
        take(i, decoded)
        if not decoded.plain:
            facts[i] = decoded._replace(pixels=None, digest=b"")  # all images may not fit into memory

    with warnings.catch_warnings(action="ignore"):  # Pillow warns of each large picture and odd EXIF
        in_threads(lambda i: work(i, treatment), range(len(paths)), "decoding images")
        deep = {i: fact for i, fact in facts.items() if fact.largest is not None}
        if deep and treatment.depth is None and treatment.span is None:
            treatment = _with_range(treatment, [*deep.values()])
            if treatment.depth != DEEPEST:  # with which all were read
                kind = "grey values" if treatment.depth is None else f"{treatment.depth}-bit images"
                in_threads(lambda i: work(i, treatment), [*deep], f"decoding {kind} again")
    return _found([*facts.items()], bad, treatment)


def _with_range(treatment: Treatment, deep: Sequence[Decoded]) -> Treatment:
    """Return a treatment with the range of grey that these files need."""
    low, high = min(fact.lowest for fact in deep), max(fact.largest for fact in deep)
    if any(fact.ranged for fact in deep):
        return treatment._replace(span=(low, high))
    return treatment._replace(depth=next(bits for bits in DEPTHS if high < 2**bits))


def _found(facts: Sequence[tuple[int, Decoded]], bad: Mapping[int, str], treatment: Treatment) -> Found:
    """Sum up what was found in files."""
    each = [fact for _, fact in facts]
    deep = [fact for fact in each if fact.largest is not None]
    return Found(
        treatment.depth,
        max((fact.largest for fact in deep), default=None),
        deep=len(deep),
        brightest=max((fact.brightest for fact in each if fact.brightest is not None), default=None),
        transparent=sum(fact.transparent for fact in each),
        frames=sum(fact.frames for fact in each),
        bad=dict(sorted(bad.items())),
        span=treatment.span,
        lowest=min((fact.lowest for fact in deep), default=None),
        patients={i: fact.patient for i, fact in sorted(facts) if fact.patient is not None},
        unwindowed=sum(not fact.windowed for fact in each),
    )


def in_threads(work: Callable[[int], None], numbers: Sequence[int], what: str, threads: int | None = None) -> None:
    """Call ``work`` with each number in threads; Pillow, hashes and disks work outside the interpreter lock.

    Args:
        work: is called in any thread.
        numbers: arguments of ``work``.
        what: label of the progress bar.
        threads: by default one per processor.
    """
    threads = threads or processors()
    size = max(1, min(AT_A_TIME, len(numbers) // (4 * threads)))
    chunks = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    pool = ThreadPoolExecutor(threads)
    try:
        done = pool.map(lambda chunk: [work(i) for i in chunk], chunks)
        for _ in progress(chain.from_iterable(done), what, len(numbers)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
