"""Contact sheets of what was found, and histograms of the features that tell the classes apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from src.auditing.evidence import Evidence, Finding
from src.auditing.shortcuts import Shortcut
from src.exploration import grids
from src.exploration.latents import CLASS_COLOURS
from src.exploration.writing import LONGEST_NAME, Figure, distinct, legend, short

COLUMNS, MOST = 6, 18  # pictures side by side, and in a sheet
PANELS, BINS = 6, 40
CLASSES = 6  # in a histogram
STEP = 7  # from a class's colour to the next one's: neighbours in the list are too alike, and all ten are used
TITLES = {
    "copies": "Byte-identical files",
    "same_pixels": "Different files of the same pixels",
    "near_copies": "Nearly the same pictures",
    "patients": "Patients in more than one split",
    "inverted": "Maybe negatives",
    "blank": "Blank or nearly constant",
    "borders": "Black or white borders",
    "marks": "Maybe letters or markers near an edge",
    "levels": "Few grey levels in use",
}


def draw_finding(evidence: Evidence, finding: Finding) -> Figure:
    """Draw the first images of a finding, or its pairs over each other, with files and reasons."""
    pool, chosen = evidence.pool, finding.images[:MOST]
    rows = len(chosen[0])
    images = [pool.images[torch.tensor([some[row] for some in chosen])] / 255 for row in range(rows)]
    files = [[pool.names[i] if pool.names else str(i) for i in some] for some in chosen]
    labels = distinct(
        [
            _captioned(evidence, file, i)
            for names, some in zip(files, chosen, strict=True)
            for file, i in zip(names, some, strict=True)
        ],
        LONGEST_NAME,
    )
    captions = [
        "\n".join([*labels[n * rows : (n + 1) * rows], *finding.reasons[n].split(", ")]) for n in range(len(chosen))
    ]
    shown = "" if len(finding.images) <= MOST else f", {MOST} of {len(finding.images):,}"
    names = {f"{row + 1}" if rows > 1 else "": some for row, some in enumerate(images)}
    return grids.stacked(names, f"{TITLES[finding.kind]}{shown}", captions, COLUMNS)


def _captioned(evidence: Evidence, file: str, i: int) -> str:
    """Return the end of an image's path, or its class and number."""
    path = Path(file)
    return "/".join(path.parts[-2:]) if evidence.pool.names else f"{evidence.class_of(i)} {file}".strip()


def draw_features(evidence: Evidence, found: Sequence[Shortcut], features: Mapping[str, np.ndarray]) -> Figure:
    """Draw histograms by class of the features that tell most."""
    shown = found[:PANELS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    labels = evidence.pool.labels.numpy()
    for shortcut, axes in zip(shown, panels, strict=False):  # in this order: the panels that are left stay in `panels`
        first = next(iter(shortcut.areas))
        part = evidence.sides == "test" if first == "test" else np.isin(evidence.sides, ("train", "val"))
        values = np.where(part, features[shortcut.feature], np.nan)
        low, high = np.nanquantile(values, [0.002, 0.998])
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        told = [name for name in (shortcut.negative, shortcut.positive) if name in evidence.pool.classes]
        names = [*told, *(name for name in evidence.pool.classes if name not in told)][:CLASSES]
        handles = []
        for name in names:
            of = values[(labels == evidence.pool.classes.index(name)) & np.isfinite(values)]
            colour = CLASS_COLOURS[evidence.pool.classes.index(name) * STEP % len(CLASS_COLOURS)]
            weights = np.full(len(of), 1 / max(len(of), 1))
            *_, patches = axes.hist(of.clip(low, high), edges, weights=weights, histtype="step", color=colour, lw=1.5)
            handles.append(patches[0])
        axes.set_title(f"{shortcut.feature}: {shortcut.area.value:.2f} ({first})", fontsize=10)
        axes.set_ylabel("share of the class", fontsize=8)
        axes.tick_params(labelsize=8)
        legend(axes, handles, [short(name, LONGEST_NAME) for name in names], fontsize=8, frameon=False)
    for axes in list(panels):
        axes.set_axis_off()
    figure.suptitle("What tells the classes apart without a model: area under the ROC curve", fontsize=11)
    return figure
