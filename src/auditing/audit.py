"""The whole audit of a data set: what was looked at, what was found, and the words and files that say so."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.auditing.evidence import SPLITS, Evidence, Finding
from src.auditing.findings import findings
from src.auditing.originals import read_all
from src.auditing.pictures import draw_features, draw_finding
from src.auditing.shortcuts import Shortcut, features_of, shortcuts
from src.data.base import ImageDataModule
from src.exploration.gallery import write
from src.system.files import whole_file

log = logging.getLogger(__name__)

SHOWN = 10  # shortcuts on the terminal
CLASSES = 20  # classes in a table
PICTURED = ("copies", "same_pixels", "near_copies", "patients", "inverted", "blank", "borders", "marks", "levels")
NUMBERS = {"width": "width", "height": "height", "aspect": "aspect ratio", "bytes": "file bytes"}
NUMBERS |= {"levels": "grey levels in use"}


@dataclass
class Audit:
    """What was found in a data set."""

    evidence: Evidence
    findings: list[Finding]
    shortcuts: list[Shortcut]
    features: dict[str, np.ndarray]

    @property
    def problems(self) -> list[Finding]:
        """Findings that may spoil a training or its figures."""
        return [finding for finding in self.findings if finding.problem]

    @property
    def telling(self) -> list[Shortcut]:
        """Features that give a class away."""
        return [shortcut for shortcut in self.shortcuts if shortcut.word]


def audit(datamodule: ImageDataModule) -> Audit:
    """Look at every image and every file of a data set; no file is changed, and one at a time is in memory."""
    pool = datamodule.pool
    originals = None if pool.paths is None else read_all(pool.paths, pool.published == "skipped")
    evidence = Evidence(datamodule, originals)
    features = features_of(pool.images, originals)
    return Audit(evidence, findings(evidence), shortcuts(features, datamodule), features)


def counts(evidence: Evidence) -> dict[str, dict[str, int]]:
    """Return how many images of each class each split has; "" for those without a class or left out."""
    names = [evidence.class_of(i) for i in range(len(evidence.pool))]
    table: dict[str, Counter[str]] = {}
    for side, name in zip(evidence.sides, names, strict=True):
        table.setdefault(side, Counter())[name] += 1
    return {side: dict(sorted(table[side].items())) for side in (*SPLITS, "") if side in table}


def ranges(evidence: Evidence) -> dict[str, dict[str, list[float]]]:
    """Return least, median and largest of sizes by class, and of all images ("all")."""
    files = [(i, one) for i, one in enumerate(evidence.originals or []) if one is not None]
    found: dict[str, dict[str, list[float]]] = {}
    for of, name in NUMBERS.items():
        by_class: dict[str, list[float]] = {"all": []}
        for i, one in files:
            by_class["all"].append(getattr(one, of))
            if known := evidence.class_of(i):
                by_class.setdefault(known, []).append(getattr(one, of))
        if files:
            found[name] = {key: [float(f(v)) for f in (min, np.median, max)] for key, v in by_class.items()}
    return found


def kinds(evidence: Evidence) -> dict[str, int]:
    """Return how many files of each kind there are, the most common first."""
    return dict(Counter(one.kind for one in evidence.originals or [] if one is not None).most_common())


def words(found: Audit, notes: Iterable[str]) -> str:
    """Return the audit for a terminal: problems, features that tell the classes, then facts."""
    evidence, told = found.evidence, found.telling
    lines = [f"{len(found.problems)} problems, {len(told)} features that tell the classes apart"]
    lines += ["", *(f"  ! {finding.words}" for finding in found.problems)] if found.problems else []
    lines += ["", *_shortcut_lines(found)]
    lines += ["", "Facts", *(f"  {finding.words}" for finding in found.findings if not finding.problem)]
    lines += [f"  {note}" for note in notes]
    lines += [f"  {line}" for line in (*_count_lines(evidence), *_range_lines(evidence))]
    if evidence.originals is None:
        lines.append("  these images are no files: sizes, kinds, borders and marks of files are not looked at")
    return "\n".join(lines)


def _shortcut_lines(found: Audit) -> list[str]:
    if not found.shortcuts:
        return ["Classes: there are no two with 10 images each, so nothing is told apart"]
    width = max(len(shortcut.feature) for shortcut in found.shortcuts[:SHOWN])
    over = "patients" if found.evidence.pool.groups is not None else "images"
    lines = [f"How well a number alone tells a class (area under the ROC curve, 95 % interval over {over}, 0.5: not)"]
    for shortcut in found.shortcuts[:SHOWN]:
        areas = "  ".join(f"{part} {area}" for part, area in shortcut.areas.items())
        side = "larger" if shortcut.larger else "smaller"
        lines.append(
            f"  {shortcut.feature:<{width}}  {areas}  {side} in {shortcut.positive} than in {shortcut.negative}"
            + (f"  {shortcut.word}" if shortcut.word else "")
        )
    return [*lines, verdict(found.telling)]


def verdict(telling: Sequence[Shortcut]) -> str:
    """Say what the features that give a class away mean."""
    if not telling:
        return "Verdict: no simple number tells the classes apart."
    best = telling[0]
    return (
        f"Verdict: {best}. A model may use this in place of what the picture shows: print it beside every score, "
        "and have files of all classes made in the same way"
        + (
            "; stretching to squares turns aspect ratio into texture, padding into black bars: try data.fit=crop"
            if any(shortcut.feature == "aspect ratio" for shortcut in telling)
            else ""
        )
        + "."
    )


def _count_lines(evidence: Evidence) -> list[str]:
    lines = []
    for side, by_class in counts(evidence).items():
        some = [f"{name or 'no class'} {count:,}" for name, count in [*by_class.items()][:CLASSES]]
        lines.append(f"{side or 'left out'}: {sum(by_class.values()):,} images: {', '.join(some)}")
    return lines


def _range_lines(evidence: Evidence) -> list[str]:
    lines = [f"{count:,} files are {kind}" for kind, count in kinds(evidence).items()]
    for name, by_class in ranges(evidence).items():
        low, middle, high = by_class["all"]
        each = [f"{key} {values[1]:,.4g}" for key, values in by_class.items() if key != "all"][:CLASSES]
        by = f" (by class: {', '.join(each)})" if len(each) > 1 else ""
        lines.append(f"{name}: {low:,.4g} to {high:,.4g}, median {middle:,.4g}{by}")
    return lines


def save(found: Audit, folder: Path, notes: Sequence[str]) -> list[Path]:
    """Write ``audit.json`` and the pictures, remove pictures of an earlier audit, and return their paths."""
    evidence, paths = found.evidence, []
    drawn = {finding.kind: finding for finding in found.findings if finding.kind in PICTURED and finding.images}
    for kind in PICTURED:
        if kind not in drawn:
            (folder / f"{kind}.png").unlink(missing_ok=True)
    for kind, finding in drawn.items():
        write(draw_finding(evidence, finding), folder / f"{kind}.png")
        paths.append(folder / f"{kind}.png")
    if found.shortcuts:
        write(draw_features(evidence, found.shortcuts, found.features), folder / "features.png")
        paths.append(folder / "features.png")
    else:
        (folder / "features.png").unlink(missing_ok=True)
    with whole_file(folder / "audit.json") as file:
        file.write_text(json.dumps(as_json(found, notes), indent=1, allow_nan=False))
    return [folder / "audit.json", *paths]


def as_json(found: Audit, notes: Sequence[str]) -> dict[str, Any]:
    """Return everything that was found as plain values; images by their file, or by their number."""
    evidence = found.evidence
    names = evidence.pool.names
    return {
        "data": evidence.datamodule.name,
        "images": len(evidence.pool),
        "counts": counts(evidence),
        "kinds": kinds(evidence),
        "ranges": {
            name: {k: dict(zip(("min", "median", "max"), v, strict=True)) for k, v in by.items()}
            for name, by in ranges(evidence).items()
        },
        "notes": [*notes],
        "findings": [
            {
                "kind": finding.kind,
                "problem": finding.problem,
                "words": finding.words,
                "count": finding.count,
                "images": [
                    {"files": [names[i] if names else i for i in some], "why": why}
                    for some, why in zip(finding.images, finding.reasons, strict=True)
                ],
            }
            for finding in found.findings
        ],
        "features": [
            {
                "feature": shortcut.feature,
                "class": shortcut.positive,
                "against": shortcut.negative,
                "direction": "larger" if shortcut.larger else "smaller",
                "word": shortcut.word,
                "auroc": {part: area._asdict() for part, area in shortcut.areas.items()},
            }
            for shortcut in found.shortcuts
        ],
    }
