"""One or several detectors judge test images or a user's own pictures, and what they say is written."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from src.data.base import ImageDataModule
from src.detection import pictures, results
from src.detection.detector import VERDICT, Detector, Judged, joined, normal_classes, p_values
from src.detection.truth import Truth, truth
from src.exploration import own_images
from src.exploration.gallery import write
from src.exploration.scores import look_like_negatives
from src.exploration.writing import Figure, distinct
from src.models.predictor import Predictor
from src.runs.load import LoadedRun
from src.runs.metrics_file import write_json
from src.system.errors import UserError
from src.system.files import whole_file

log = logging.getLogger(__name__)

SHOWN = 20  # pictures listed on the terminal
LONGEST = 24  # letters of a file name below a picture
NO_MODEL = " (no model)"


@dataclass
class Outcome:
    """What detectors say of images, ready to be shown.

    Attributes:
        words: for the terminal.
        table: a row for each image; no label is in it.
        figures: by their path below ``figures/``, without its ending.
        below: folder below the one that is written to.
        record: for ``detection.json``; None for pictures of a user.
    """

    words: str
    table: pd.DataFrame
    figures: dict[str, Figure]
    below: Path = field(default_factory=Path)
    record: dict[str, Any] | None = None

    def write(self, folder: Path, runs: Sequence[LoadedRun]) -> list[Path]:
        """Write table, record and figures, a single run's figures into TensorBoard too, and return the paths.

        Figures of an earlier call that this one does not have are removed.
        """
        paths = [folder / self.below / "scores.csv"]
        with whole_file(paths[0]) as file:
            self.table.to_csv(file, index=False)
        if self.record is not None:
            paths.append(folder / "detection.json")
            about = [{"run": str(run.folder.path), "checkpoint": run.checkpoint_hash} for run in runs]
            write_json(paths[-1], {"runs": about, **self.record})
            for name in {"roc", "scores"} - self.figures.keys():
                (folder / "figures" / f"{name}.png").unlink(missing_ok=True)
        home = folder / (self.below if self.record is None else "figures")
        for name, figure in self.figures.items():
            paths.append(home / f"{name}.png")
            write(figure, paths[-1])
        if len(runs) == 1 and folder == runs[0].folder.path:
            with SummaryWriter(runs[0].folder.tensorboard) as writer:
                for name, figure in self.figures.items():
                    tag = Path("detect", *self.below.parts[1:], name)
                    writer.add_figure(str(tag), figure, runs[0].record.get("steps", 0))
        return paths


def folder_of(given: str | None, runs: Sequence[LoadedRun]) -> Path:
    """Return the folder to write to: the one given, else that of the run.

    Raises:
        UserError: there are several runs and no folder.
    """
    if given is None and len(runs) > 1:
        raise UserError("several runs have no common folder: say where to write, such as folder=outputs/detection")
    return runs[0].folder.path if given is None else Path(given)


class Panel:
    """Detectors of one or several runs on the same images, whose standardised scores are averaged.

    Args:
        predictors: of the runs.
        normal: names of the normal classes; None for those that the runs were trained on.
        samples: of each posterior, for costs.

    Raises:
        UserError: the runs have other images, splits or normal classes than the first, or too few images.
    """

    def __init__(self, predictors: Sequence[Predictor], normal: Sequence[str] | None, samples: int) -> None:
        named = None if normal is None else [str(name) for name in normal]
        self.normal = normal_classes(predictors[0], named)
        for other in predictors[1:]:
            _check_alike(predictors[0].datamodule, other.datamodule)
            if normal_classes(other, named) != self.normal:
                raise UserError("the runs were trained on different classes: say which are normal, normal=[...]")
        self.detectors = [Detector(predictor, self.normal, samples) for predictor in predictors]
        self.finest = max(self.detectors, key=lambda one: one.predictor.datamodule.image_size)
        self.module: ImageDataModule = self.finest.predictor.datamodule
        self.validation = self._joined([one.validation for one in self.detectors])
        self.bare = self.finest.baselines(self.finest.held.levels)
        self.threshold = results.thresholds(self.validation, self.bare)[VERDICT]

    def _joined(self, judged: Sequence[Judged]) -> Judged:
        return joined(judged, [one.validation for one in self.detectors])

    @property
    def about(self) -> str:
        """Say what normal means here."""
        classes = [self.module.pool.classes[number] for number in self.normal or ()]
        names, held = ", ".join(classes) or "all training images", len(self.finest.held.index)
        return f"Normal: {names}; fitted to training images, calibrated on {held:,} validation images"

    def judge_test_images(self, kinds: str | None) -> Outcome:
        """Judge the test images, and hold the scores against labels where these are known."""
        index = self.module.splits.test
        seen = [one.images("test", one.predictor.datamodule.splits.test) for one in self.detectors]
        judged = self._joined([one.judge(some.x, some.levels) for one, some in zip(self.detectors, seen, strict=True)])
        levels = self.module.pool.images[index]
        bare = self.finest.baselines(levels)
        labels = truth(self.module, index, self.normal, kinds)
        found = results.result((judged, bare), (self.validation, self.bare), labels, self.finest.groups(index))
        names = [self.module.pool.names[i] if self.module.pool.names else str(i) for i in index.tolist()]
        figures = self._figures(judged, bare, labels, found) | {
            "heatmaps": self._heatmaps(levels, judged, labels, [Path(name).name for name in names])
        }
        over = "patients" if self.module.pool.groups is not None else "images"
        said = results.words(found, over) if found else f"No AUROC: {_why_none(labels)}.\n{results.NOT_A_DIAGNOSIS}"
        record = {"threshold": self.threshold, "labels": results.as_json(found) if found else None}
        return Outcome(f"{self.about}.\n{said}", self._table(names, judged, bare), figures, record=record)

    def judge_pictures(self, where: str | list[str], invert: bool) -> Outcome:
        """Judge a user's own pictures."""
        own = [own_images.read(where, one.predictor.datamodule, invert) for one in self.detectors]
        judged = self._joined([one.judge(some.x, some.levels) for one, some in zip(self.detectors, own, strict=True)])
        shown = own[self.detectors.index(self.finest)]
        if hint := look_like_negatives(self.finest.predictor, shown):
            log.warning(hint)
        unknown = Truth(*(np.zeros(len(shown.names), dtype=bool) for _ in range(2)), np.array([]), [])
        table = self._table(shown.names, judged, self.finest.baselines(shown.levels))
        figures = {"heatmaps": self._heatmaps(shown.levels, judged, unknown, shown.captions)}
        order = np.argsort(-judged.verdict, kind="stable")[:SHOWN]
        width = max(len(shown.names[i]) for i in order)
        lines = [
            f"  {table.file[i]:<{width}}  verdict {table.verdict[i]:8.2f}  p {table.p_value[i]:.3f}"
            f"{'  unlike normal images' if judged.verdict[i] > self.threshold else ''}"
            for i in order
        ]
        more = f", the {SHOWN} highest of {len(shown.names):,}" if len(shown.names) > SHOWN else ""
        said = [
            f"{self.about}.",
            f"p: the share of normal images that score as high{more}. The threshold is {self.threshold:.2f}",
            *lines,
            results.NOT_A_DIAGNOSIS,
        ]
        return Outcome("\n".join(said), table, figures, Path("figures", "pictures", shown.folder))

    def _table(self, names: Sequence[str], judged: Judged, bare: Mapping[str, np.ndarray]) -> pd.DataFrame:
        columns = {"file": names, VERDICT: judged.verdict, "p_value": p_values(judged.verdict, self.validation.verdict)}
        return pd.DataFrame(columns | judged.scores | {f"{name}{NO_MODEL}": values for name, values in bare.items()})

    def _figures(
        self, judged: Judged, bare: Mapping[str, np.ndarray], labels: Truth, found: results.Result | None
    ) -> dict[str, Figure]:
        if found is None:
            return {}
        columns = {VERDICT: judged.verdict, **judged.scores, **bare}
        held = {VERDICT: self.validation.verdict, **self.validation.scores, **self.bare}
        return {
            "roc": pictures.roc(columns, labels, found),
            "scores": pictures.histograms(columns, held, labels, found),
        }

    def _heatmaps(self, levels: Tensor, judged: Judged, labels: Truth, files: Sequence[str]) -> Figure:
        groups = pictures.chosen(judged, labels, self.threshold)
        p = p_values(judged.verdict, self.validation.verdict)
        kinds = [labels.kind[i] or labels.name[i] if labels.name else "" for i in range(len(files))]
        captions = [
            "\n".join(filter(None, (file, kind, f"p {share:.3f}")))
            for file, kind, share in zip(distinct(files, LONGEST), kinds, p, strict=True)
        ]
        hottest = float(np.quantile(self.validation.heat.max((1, 2)), pictures.PASSED))
        return pictures.heatmaps(groups, levels, judged, hottest, captions)


def _why_none(labels: Truth) -> str:
    if not labels.known.any():
        return "the test images have no classes"
    return "the test images are all of normal classes, or none is (normal=[...] says which these are)"


def _check_alike(first: ImageDataModule, other: ImageDataModule) -> None:
    """Raise a UserError unless two runs have the same images in the same splits; their sizes may differ."""
    for part in ("val", "test"):
        a, b = ([module.pool.digests[i] for i in getattr(module.splits, part).tolist()] for module in (first, other))
        if a != b:
            raise UserError(f"the runs have different {part} images: give runs of the same data, splits and classes")
