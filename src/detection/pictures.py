"""ROC curves, histograms of scores, and heat maps."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.metrics import roc_curve
from torch import Tensor
from torch.nn.functional import interpolate

from src.detection.detector import PASSED, VERDICT, Judged, threshold
from src.detection.results import NOT_A_DIAGNOSIS, Result
from src.detection.truth import Truth
from src.exploration import grids
from src.exploration.latents import CLASS_COLOURS
from src.exploration.writing import Figure

COLUMNS = 6
CURVES = 3  # of the best scores and of the best baselines each, beside the verdict
PANELS, BINS = 6, 40
NORMAL, OTHER, HELD = CLASS_COLOURS[3], CLASS_COLOURS[6], CLASS_COLOURS[9]


def roc(columns: dict[str, np.ndarray], truth: Truth, found: Result) -> Figure:
    """Draw the ROC curves of the verdict, and of the best scores and baselines.

    Args:
        columns: scores ``[N]`` by name.
        truth: labels.
        found: what they say of the scores.
    """
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    axes = figure.subplots()
    known = truth.known
    for rows, style in ((found.of_model[: CURVES + 1], "-"), (found.baselines[:CURVES], "--")):
        for number, row in enumerate(rows):
            false, true, _ = roc_curve(truth.abnormal[known], columns[row.name][known])
            colour = "black" if row.name == VERDICT else CLASS_COLOURS[(2 * number + (style == "--")) % 9]
            label = f"{row.name} {row.auroc.value:.3f}" + ("" if row.needs_model else " (no model)")
            axes.plot(false, true, style, color=colour, lw=2.5 if row.name == VERDICT else 1.5, label=label)
    axes.plot([0, 1], [0, 1], ":", color="grey", lw=1)
    verdict = found.rows[0]
    passes = f"passes {PASSED:.0%} of normal validation images"
    axes.plot(1 - verdict.specificity.value, verdict.sensitivity.value, "o", color="black", label=passes)
    axes.set(xlabel="share of normal images called abnormal", ylabel="share of other images called abnormal")
    axes.set_title("How well scores tell images that are not normal: areas under the ROC curve")
    axes.legend(fontsize=9, loc="lower right", frameon=False)
    axes.grid(alpha=0.3)
    return figure


def histograms(columns: dict[str, np.ndarray], held: dict[str, np.ndarray], truth: Truth, found: Result) -> Figure:
    """Draw the distributions of the verdict, the best scores and the best baselines, with the thresholds."""
    shown = [*found.of_model[: PANELS // 2], *found.baselines[: PANELS // 2]]
    figure = Figure(figsize=(13, 6.6), layout="constrained")
    for row, axes in zip(shown, figure.subplots(2, PANELS // 2).flat, strict=False):
        values, normal = columns[row.name], truth.known & ~truth.abnormal
        low, high = np.quantile(np.concatenate([values, held[row.name]]), [0.002, 0.995])
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        for name, some, colour in (
            ("normal", values[normal], NORMAL),
            ("other", values[truth.abnormal], OTHER),
            ("normal, validation", held[row.name], HELD),
        ):
            weights = np.full(len(some), 1 / max(len(some), 1))
            axes.hist(some.clip(low, high), edges, weights=weights, histtype="step", color=colour, lw=1.5, label=name)
        axes.axvline(min(threshold(held[row.name]), high), color="grey", ls="--", lw=1)
        axes.set_title(f"{row.name}{'' if row.needs_model else ' (no model)'}: {row.auroc.value:.3f}", fontsize=10)
        axes.tick_params(labelsize=8)
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.axes[0].set_ylabel("share of images", fontsize=8)
    figure.suptitle(f"Scores of normal and other images; dashed: passes {PASSED:.0%} of normal validation images")
    return figure


def heatmaps(
    groups: dict[str, Sequence[int]],
    levels: Tensor,
    judged: Judged,
    hottest: float,
    captions: Sequence[str],
    remark: str = "",
) -> Figure:
    """Draw groups of images, each over the places that are unlike those of normal images.

    Args:
        groups: what the images have in common: which of the N these are.
        levels: uint8 ``[N, C, H, W]``.
        judged: verdicts and heat maps.
        hottest: heat that is drawn full red: of the hottest place of a normal image that is at the threshold.
        captions: ``[N]``.
        remark: what the title must add after the word for what it shows.
    """
    tables, below = [], []
    for name, some in groups.items():
        for start in range(0, len(some), COLUMNS):
            here = list(some[start : start + COLUMNS])
            images = levels[here].float() / 255
            tables.append(torch.stack([grids.in_colour(images), overlaid(images, judged.heat[here], hottest)]))
            below.append(["\n".join(filter(None, (name, captions[i]))) for i in here])
    title = (
        f"Where images{remark} differ from normal ones. Full red: as hot as the hottest place of one normal validation "
        f"image in {round(1 / (1 - PASSED))}; yellow: ten times as far beyond the usual. {NOT_A_DIAGNOSIS}"
    )
    return grids.captioned(tables, title, ["image", "heat map"], below)


def overlaid(images: Tensor, heat: np.ndarray, hottest: float) -> Tensor:
    """Lay heat maps ``[N, h, w]`` over images ``[N, C, H, W]`` in [0, 1]: ``[N, 3, H, W]``.

    Up to 1, the usual heat, a place stays grey. From there to ``hottest`` red becomes stronger, and what is ten times
    as far beyond the usual is yellow.
    """
    strength = torch.from_numpy((heat - 1) / max(hottest - 1, 1e-6)).float()[:, None]
    strength = interpolate(strength, images.shape[-2:], mode="bilinear", align_corners=False).clamp_min(0)
    yellow = strength.clamp_min(1).log10().clamp_max(1)
    colour = torch.cat([torch.ones_like(yellow), 0.1 + 0.8 * yellow, torch.zeros_like(yellow)], 1)
    share = 0.7 * strength.clamp_max(1)
    return images.mean(1, keepdim=True) * (1 - share) + colour * share


def chosen(judged: Judged, truth: Truth, limit: float, count: int = COLUMNS) -> dict[str, list[int]]:
    """Choose images to show: the highest verdicts, those in the middle, and abnormal ones that pass as normal.

    Without labels the last are the lowest verdicts. No image is shown twice.
    """
    order = [int(i) for i in np.argsort(-judged.verdict, kind="stable")]
    highest, rest = order[:count], order[count:][::-1]
    if truth.abnormal.any():
        name, last = "missed", [i for i in rest if truth.abnormal[i] and judged.verdict[i] <= limit][:count]
    else:
        name, last = "lowest", rest[:count]
    left = [i for i in order if i not in {*highest, *last}]
    start = max(0, (len(left) - count) // 2)
    groups = {"highest": highest, "middle": left[start : start + count], name: last}
    return {group: some for group, some in groups.items() if some}
