"""Checks for what occurs more than once: files, pixels, nearly the same pictures, patients in several splits."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from src.auditing import alike
from src.auditing.evidence import SPLITS, Evidence, Finding


def same_file(evidence: Evidence) -> Iterator[Finding]:
    """Byte-identical files."""
    digests = [
        digest if usable else None for digest, usable in zip(evidence.pool.digests, evidence.usable, strict=True)
    ]
    sets = alike.sets_of(digests)
    what = "are copies, byte by byte" if evidence.originals is not None else "are equal, pixel by pixel"
    yield from _repeated(evidence, "copies", sets, what, _published_too(evidence, sets))


def same_pixels(evidence: Evidence) -> Iterator[Finding]:
    """Other files of the same pixels."""
    if evidence.originals is None:
        return
    sets = alike.sets_of([None if one is None else one.digest for one in evidence.originals])
    sets = [same for same in sets if len({evidence.pool.digests[i] for i in same}) > 1]
    yield from _repeated(evidence, "same_pixels", sets, "hold the same pixels in different files")


def nearly_the_same(evidence: Evidence) -> Iterator[Finding]:
    """Pictures that differ by less than a re-encoding changes them."""
    repeated = {i for pair in evidence.known_pairs for i in pair[1:]}
    chosen = torch.tensor([i for i in np.flatnonzero(evidence.usable) if i not in repeated], dtype=torch.long)
    pairs, left_out = alike.nearly_equal(evidence.pool.images, chosen, *evidence.thumbs)
    if left_out:
        yield Finding("compared", left_out, problem=False)
    if len(chosen) and len(pairs) > len(chosen) / 2:
        words = f"{len(pairs):,} pairs of images are nearly the same: they are too simple or too small to tell copies"
        yield Finding("near_copies", words, problem=False, count=len(pairs))
        return
    sets = [list(pair[1:]) for pair in pairs]
    reasons = {tuple(pair[1:]): f"correlation {pair[0]:.4f}" for pair in pairs}
    yield from _repeated(evidence, "near_copies", sets, "are nearly the same picture", reasons=reasons)


def _published_too(evidence: Evidence, sets: Sequence[Sequence[int]]) -> str:
    """Say how many copies the publisher has in two splits; a training leaves them out itself."""
    across = sum(len({evidence.pool.published[i] for i in same}) > 1 for same in sets)
    return (
        f"; {across:,} sets lie in two published splits, and a training leaves those out of the one to learn from"
        if across
        else ""
    )


def _repeated(
    evidence: Evidence,
    kind: str,
    sets: Sequence[Sequence[int]],
    what: str,
    more: str = "",
    reasons: dict[tuple[int, int], str] | None = None,
) -> Iterator[Finding]:
    pairs = [pair for pair in alike.pairs_of(sets) if pair not in evidence.known_pairs]
    evidence.known_pairs.update(pairs)
    if not pairs:
        return
    crossing = {pair: evidence.crossing(pair) for pair in pairs}
    pairs.sort(key=lambda pair: ("two classes" not in crossing[pair], not crossing[pair]))
    classes = sum("two classes" in words for words in crossing.values())
    splits = sum(" and " in words for words in crossing.values())
    images = len({i for pair in pairs for i in pair})
    words = (
        f"{images:,} images {what} ({len(pairs):,} pairs): {classes:,} pairs of two classes, {splits:,} across splits"
    )
    if classes:
        more += "; one of the two classes is wrong: correct or remove them"
    if splits:
        more += "; what is tested on has been trained on: remove one of each"
    captions = [", ".join(filter(None, (crossing[pair], (reasons or {}).get(pair)))) for pair in pairs]
    yield Finding(kind, words + more, bool(classes or splits), pairs, captions, images)


def patients(evidence: Evidence) -> Iterator[Finding]:
    """Patients with images in more than one split."""
    pool = evidence.pool
    if pool.groups is None:
        if evidence.originals is not None:
            words = "patients are not known: data.group_pattern keeps each in one split, and makes intervals honest"
            yield Finding("patients", words, problem=False)
        return
    sides: dict[str, dict[str, int]] = {}
    for i in np.flatnonzero(evidence.sides != ""):
        sides.setdefault(pool.groups[i], {}).setdefault(evidence.sides[i], int(i))
    shared = [one for one in sides.values() if len(one) > 1]
    if shared:
        pairs = [tuple(one[side] for side in SPLITS if side in one)[:2] for one in shared]
        names = [" and ".join(side for side in SPLITS if side in one) for one in shared]
        words = (
            f"{len(shared):,} of {len(sides):,} patients (groups) have images in several splits: "
            "if these are the same people, test figures are flattered; a copy without split folders is split by patient"
        )
        yield Finding("patients", words, True, pairs, names, len(shared))
    else:
        yield Finding("patients", f"none of {len(sides):,} patients (groups) is in two splits", problem=False)
