"""One or several detectors judge test images or a user's own pictures, and what they say is written."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch.utils.tensorboard import SummaryWriter

from src.data.base import ImageDataModule
from src.detection import pictures, results
from src.detection.detector import VERDICT, Detector, Judged, joined, normal_classes, p_values, threshold
from src.detection.truth import Truth, truth
from src.exploration import own_images
from src.exploration.gallery import remove_other_pages, write
from src.exploration.scores import look_like_negatives
from src.exploration.writing import Figure, distinct
from src.models.predictor import Predictor
from src.runs.folder import RunFolder
from src.runs.load import LoadedRun
from src.runs.metrics_file import write_json
from src.system.errors import UserError
from src.system.files import readable, refuse_inside, whole_file

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
        figures: by name.
        record: for ``detection.json``.
        own: folder of the results for a user's own pictures, below ``figures/``; None for test images.
    """

    words: str
    table: pd.DataFrame
    figures: dict[str, Figure]
    record: dict[str, Any]
    own: Path | None = None

    def write(self, folder: Path, runs: Sequence[LoadedRun]) -> list[Path]:
        """Write table, record and figures, a single run's figures into TensorBoard too, and return the paths.

        Figures of an earlier call that this one does not have are removed.
        """
        home = folder if self.own is None else folder / "figures" / self.own
        drawn = folder / "figures" if self.own is None else home
        paths = [home / "scores.csv", home / "detection.json"]
        with whole_file(paths[0]) as file:
            self.table.to_csv(file, index=False)
        about = [{"run": str(run.folder.path), "checkpoint": run.checkpoint_hash} for run in runs]
        write_json(paths[1], {"runs": about, **self.record})
        for name, figure in self.figures.items():
            paths.append(drawn / f"{name}.png")
            write(figure, paths[-1])
        if self.own is not None:
            remove_other_pages(drawn, [*self.figures])
        for name in {"roc", "scores"} - self.figures.keys() if self.own is None else ():
            (drawn / f"{name}.png").unlink(missing_ok=True)
        if len(runs) == 1 and folder.resolve() == runs[0].folder.path.resolve():
            with SummaryWriter(runs[0].folder.tensorboard) as writer:
                for name, figure in self.figures.items():
                    writer.add_figure(str(Path("detect", self.own or "", name)), figure, runs[0].record.get("steps", 0))
        return paths


def folder_of(given: str | None, runs: Sequence[LoadedRun], own: str | Sequence[str] | None) -> Path:
    """Return the folder to write to, the one given, else that of the single run, after a look whether that can be.

    Args:
        given: ``folder=``.
        runs: that judge.
        own: ``images=``.

    Raises:
        UserError: it holds images or another run, or cannot be written to.
    """
    folder = runs[0].folder.path if given is None else Path(given).expanduser()
    if given is not None:
        for run in runs:
            if hasattr(run.datamodule, "root"):
                refuse_inside(folder, run.datamodule.root, "data.root")
        for place in [own] if isinstance(own, str) else own or ():
            if Path(place).expanduser().is_dir():
                refuse_inside(folder, place, "images=")
        same = {run.folder.path.resolve() for run in runs}
        if RunFolder(folder).config.exists() and folder.resolve() not in same:
            raise UserError(f"folder={readable(folder)} holds another run: give another folder=")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{readable(folder)} cannot be written to: give another folder=")
    return folder


class Panel:
    """Detectors of one or several runs on the same images, whose standardised scores are averaged.

    Args:
        predictors: of the runs.
        normal: names of the normal classes; None for those that the runs were trained on.
        samples: of each posterior, for costs.

    Raises:
        UserError: the runs have other images, squares or normal classes than the first, or there are too few images.
    """

    def __init__(self, predictors: Sequence[Predictor], normal: Sequence[str] | None, samples: int) -> None:
        named = None if normal is None else [str(name) for name in normal]
        self.normal = normal_classes(predictors[0], named)
        if any(normal_classes(other, named) != self.normal for other in predictors[1:]):
            raise UserError("the runs were trained on different classes: say which are normal, normal=[...]")
        self.detectors = [Detector(predictor, self.normal, samples) for predictor in predictors]
        for other in self.detectors[1:]:
            _check_alike(self.detectors[0], other)
        self.finest = max(self.detectors, key=lambda one: one.predictor.datamodule.image_size)
        self.module: ImageDataModule = self.finest.predictor.datamodule
        self.validation = self._joined([one.validation for one in self.detectors])
        self.bare = self.finest.baselines(self.module.pool.images[self.finest.held])
        self.threshold = threshold(self.validation.verdict)
        self.samples = samples

    def _joined(self, judged: Sequence[Judged]) -> Judged:
        return joined(judged, [one.validation for one in self.detectors])

    @property
    def about(self) -> str:
        """Say what normal means here."""
        classes, labels = self.module.pool.classes, self.module.pool.labels
        names = ", ".join(classes[number] for number in self.normal or ()) or "all training images"
        held = f"{len(self.finest.held):,} validation images"
        said = f"Normal: {names}; fitted to training images, calibrated on {held}."
        seen = {n for one in self.detectors for n in labels[one.predictor.datamodule.splits.train].tolist()}
        if others := sorted(seen - {-1, *(self.normal or seen)}):
            said += (
                f" A model was trained on {', '.join(classes[number] for number in others)} too: it has learnt them."
            )
        return said

    @property
    def _record(self) -> dict[str, Any]:
        limits = {name: threshold(values) for name, values in results.columns(self.validation, self.bare).items()}
        return {
            "normal": [self.module.pool.classes[number] for number in self.normal or ()],
            "validation_images": len(self.finest.held),
            "samples": self.samples,
            "seeds": [one.predictor.seed for one in self.detectors],
            "thresholds": limits,
        }

    def judge_test_images(self, kinds: str | None) -> Outcome:
        """Judge the test images, and hold the scores against labels where these are known."""
        pool, index = self.module.pool, self.module.splits.test
        tested = [one.predictor.datamodule for one in self.detectors]
        judged = self._joined(
            [one.judge(data.pool.images[data.splits.test]) for one, data in zip(self.detectors, tested, strict=True)]
        )
        levels = pool.images[index]
        bare = self.finest.baselines(levels)
        labels = truth(self.module, index, self.normal, kinds)
        found = results.result((judged, bare), (self.validation, self.bare), labels, pool.units(index))
        names = [pool.names[i] if pool.names else str(i) for i in index.tolist()]
        groups = pictures.chosen(judged, labels, self.threshold)
        shown = [labels.kind[i] or labels.name[i] for i in range(len(names))]
        captions = self._captions(judged, [Path(name).name for name in names], shown)
        figures = {"heatmaps": pictures.heatmaps(groups, levels, judged, self._hottest, captions)}
        if found is not None:
            here, held = results.columns(judged, bare), results.columns(self.validation, self.bare)
            figures["roc"] = pictures.roc(here, labels, found)
            figures["scores"] = pictures.histograms(here, held, labels, found)
        over = "patients" if pool.groups is not None else "images"
        said = results.words(found, over) if found else f"No AUROC: {_why_none(labels)}.\n{results.NOT_A_DIAGNOSIS}"
        record = {**self._record, "labels": results.as_json(found) if found else None}
        return Outcome(f"{self.about}\n{said}", self._table(names, judged, bare), figures, record)

    def judge_pictures(self, where: str | list[str], invert: bool) -> Outcome:
        """Judge a user's own pictures."""
        own = [own_images.read(where, one.predictor.datamodule, invert) for one in self.detectors]
        judged = self._joined([one.judge(some.levels) for one, some in zip(self.detectors, own, strict=True)])
        shown = own[self.detectors.index(self.finest)]
        if hint := look_like_negatives(self.finest.predictor, shown):
            log.warning(hint)
        table = self._table(shown.names, judged, self.finest.baselines(shown.levels))
        table.insert(1, "inverted", invert)
        order = [int(i) for i in np.argsort(-judged.verdict, kind="stable")]
        captions = self._captions(judged, shown.captions, [""] * len(order))
        figures = {
            page: pictures.heatmaps({"": order[here]}, shown.levels, judged, self._hottest, captions, shown.remark)
            for page, here in shown.pages("heatmaps")
        }
        width = max(len(shown.names[i]) for i in order[:SHOWN])
        lines = [
            f"  {table.file[i]:<{width}}  verdict {table.verdict[i]:8.2f}  p {table.p_value[i]:.3f}"
            f"{'  unlike normal images' if judged.verdict[i] > self.threshold else ''}"
            for i in order[:SHOWN]
        ]
        held = len(self.finest.held)
        least = 1 / (1 + held)
        more = f"; the {SHOWN} highest of {len(shown.names):,}" if len(shown.names) > SHOWN else ""
        said = [
            self.about,
            f"p: the share of normal images that score as high, at least {least:.3f} as there are {held:,}; above the "
            f"threshold of {self.threshold:.2f} at most 0.05{more}",
            *lines,
            results.NOT_A_DIAGNOSIS,
        ]
        record = {**self._record, "inverted": invert}
        return Outcome("\n".join(said), table, figures, record, Path("pictures", shown.folder))

    @property
    def _hottest(self) -> float:
        """Heat of the hottest place of a normal validation image at the threshold."""
        return threshold(self.validation.heat.max((1, 2)))

    def _table(self, names: Sequence[str], judged: Judged, bare: Mapping[str, np.ndarray]) -> pd.DataFrame:
        columns = {"file": names, VERDICT: judged.verdict, "p_value": p_values(judged.verdict, self.validation.verdict)}
        return pd.DataFrame(columns | judged.scores | {f"{name}{NO_MODEL}": values for name, values in bare.items()})

    def _captions(self, judged: Judged, files: Sequence[str], kinds: Sequence[str]) -> list[str]:
        p = p_values(judged.verdict, self.validation.verdict)
        return [
            "\n".join(filter(None, (file, kind, f"p {share:.3f}")))
            for file, kind, share in zip(distinct(files, LONGEST), kinds, p, strict=True)
        ]


def _why_none(labels: Truth) -> str:
    if not labels.known.any():
        return "the test images have no classes"
    normal, other = int((labels.known & ~labels.abnormal).sum()), int(labels.abnormal.sum())
    least = results.FEWEST
    return f"of the test images {normal:,} are of normal classes and {other:,} of others, {least} of each are needed"


def _check_alike(first: Detector, other: Detector) -> None:
    """Raise a UserError unless two runs know the same normal validation and test images; their sizes may differ."""
    for part in ("normal validation", "test"):
        a, b = (
            [data.pool.digests[i] for i in (held if part != "test" else data.splits.test).tolist()]
            for data, held in ((one.predictor.datamodule, one.held) for one in (first, other))
        )
        if a != b:
            raise UserError(f"the runs have different {part} images: give runs of the same data and splits")
    fits = [one.predictor.datamodule.pool.treatment.get("fit", "stretch") for one in (first, other)]
    if len({*fits}) > 1:
        raise UserError(
            f"the runs make other squares of pictures, data.fit={' and '.join(fits)}: give runs of one kind"
        )
