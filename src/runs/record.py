"""Summarize a finished run: ``metrics.json``, and the table on the terminal."""

import contextlib
import os
import platform
import shlex
from shutil import which
from typing import Any

import lightning as L
import torch
from torch.utils.tensorboard import SummaryWriter

from src.data.base import ImageDataModule
from src.models.base import BaseVAE
from src.models.predictor import Predictor
from src.runs.folder import RunFolder, flatten, git_commit
from src.runs.load import LoadedRun
from src.runs.metrics_file import locked, read_record, write_json
from src.system.directions import as_printed
from src.system.errors import UserError
from src.training.acceleration import peak_memory
from src.training.history import Throughput, epochs_of, kept_by

UNIT = "nats per image: summed over pixels, averaged over the images of the split"
PSEUDO = "pseudo-: this likelihood gives such pixels no probability; compare such numbers with each other only"
SPLITS = ("train", "val", "test")
CLASSES = 10  # number of classes that are named


def describe_data(datamodule: ImageDataModule) -> str:
    """Describe in one paragraph the images of each split and class, and the notes on reading and splitting them."""
    pool, splits = datamodule.pool, datamodule.splits
    shape = "x".join(str(n) for n in datamodule.image_shape)
    val, test = (
        "published" if (pool.published[getattr(splits, part).numpy()] == part).all() else "carved"
        for part in SPLITS[1:]
    )
    counts = (
        f"{len(splits.train):,} training, {len(splits.val):,} validation ({val}) and {len(splits.test):,} test images "
        f"({test}) of {shape}"
    )
    return "; ".join([f"{datamodule.name}: {counts}", *_classes(datamodule), *data_notes(datamodule)])


def parameters(model: BaseVAE) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def describe_size(model: BaseVAE) -> str:
    """Return ``27.1 M parameters``, or the exact number below a million."""
    count = parameters(model)
    return f"{count / 1e6:.1f} M parameters" if count >= 1e6 else f"{count:,} parameters"


def data_notes(datamodule: ImageDataModule) -> list[str]:
    """Return the notes on reading and splitting the images."""
    notes = [*datamodule.pool.notes]
    unused = (datamodule.pool.published == "val").sum()
    if unused and datamodule.val_fraction is not None:
        notes.append(
            f"{unused:,} images published for validation are split like the others (data.val_fraction=null validates "
            "on them)"
        )
    return notes + datamodule.splits.notes


def _classes(datamodule: ImageDataModule) -> list[str]:
    """Name the first classes and the number of their images in each split."""
    pool = datamodule.pool
    if not pool.classes:
        return []
    # Label -1 (no class) becomes the last class.
    parts = [pool.labels[getattr(datamodule.splits, part)] % (len(pool.classes) + 1) for part in SPLITS]
    table = torch.stack([part.bincount(minlength=len(pool.classes) + 1) for part in parts], 1).tolist()
    *named, none = [
        f"{name} {'/'.join(map(str, row))}" for name, row in zip([*pool.classes, "none"], table, strict=True)
    ]
    more = [f"{len(named) - CLASSES} more"] * (len(named) > CLASSES)
    shown = [*named[:CLASSES], *more, *[none] * any(table[-1])]
    return [f"classes (training/validation/test): {', '.join(shown)}"]


def best(trainer: L.Trainer) -> dict[str, float]:
    """Return the monitored metric and all validation metrics of the best epoch; empty if none was kept."""
    kept = [c for c in kept_by(trainer) if c.best_model_score is not None]
    return {
        name: value for c in kept for name, value in ({c.monitor: float(c.best_model_score)} | c.best_metrics).items()
    }


def tested_images(trainer: L.Trainer, datamodule: ImageDataModule) -> int:
    """Return the number of tested images, which ``limit_test_batches`` may reduce."""
    return min(len(datamodule.splits.test), sum(trainer.num_test_batches) * datamodule.batch_size)


def summarize(
    trainer: L.Trainer,
    model: BaseVAE,
    datamodule: ImageDataModule,
    test: dict[str, float],
    config: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of ``metrics.json`` at the end of training.

    Args:
        trainer: the trainer, after it has trained ``model`` on ``datamodule``.
        test: metrics of the test split; empty if it was not tested.
        config: the run's resolved config.
    """
    throughput = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)
    splits = datamodule.splits
    return {
        "test": test,
        "best": best(trainer),
        "tested_images": tested_images(trainer, datamodule) if test else 0,
        "unit": UNIT,
        "likelihood": model.likelihood.name,
        "pixels": datamodule.pixels,
        "pseudo_likelihood": model.likelihood.is_pseudo(datamodule.pixels),
        "names": model.metric_names(datamodule.pixels),
        "latent_dim": model.latent_dim,
        "kl_weight": model.kl_weight,
        "trainable_parameters": parameters(model),
        "data": {
            "name": datamodule.name,
            "fingerprint": datamodule.fingerprint,
            "stored_fingerprint": datamodule.stored_fingerprint,
            "image_shape": list(datamodule.image_shape),
            "treatment": datamodule.pool.treatment,
            "images": {part: len(getattr(splits, part)) for part in SPLITS},
            "notes": data_notes(datamodule),
        },
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "precision": str(trainer.precision),
        "devices": f"{trainer.num_devices} x {trainer.accelerator.name()}",
        "seed": config["seed"],
        "tags": config["tags"],
        "seconds": throughput and round(throughput.elapsed, 2),
        "train_images_per_second": throughput and throughput.images_per_second,
        "peak_memory_mib": peak_memory(),
        "config": config,
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "lightning": L.__version__},
    }


def kept_epoch(trainer: L.Trainer) -> int | None:
    """Return the epoch, counted from 1, whose weights are the best checkpoint; None if none was kept."""
    return next((int(epoch["epoch"]) + 1 for epoch in epochs_of(trainer) if "kept" in epoch), None)


def report(run: RunFolder, metrics: dict[str, Any], kept: int | None = None) -> str:
    """Return the table that is printed at the end of a run.

    Args:
        run: the run's folder.
        metrics: what :func:`summarize` returned.
        kept: the epoch of the best checkpoint, see :func:`kept_epoch`.
    """
    names = {**metrics["names"], "active_latents": "active latents", "bits_per_dim": "bits per dimension"}
    elbo_first = sorted(metrics["test"].items(), key=lambda figure: figure[0] != "elbo")
    figures = {}
    for name, value in elbo_first:
        printed, sign = as_printed(name, names["elbo"])
        figures[names.get(printed, printed)] = sign * value
    if metrics["kl_weight"] == 1:
        figures.pop("loss", None)  # it equals the −elbo, or the bound or distortion that is trained
    if (active := figures.get("active latents")) is not None:
        each = f", {figures['rate'] / active:.2f} nats each" if active and "rate" in figures else ""  # may be little
        figures["active latents"] = f"{active} of {metrics['latent_dim']}{each}"
    rows: list[tuple[str, Any]] = [(f"test {name}", value) for name, value in figures.items()]
    if metrics["train_images_per_second"]:
        speed = f"{metrics['train_images_per_second']:,.0f} images/s"
        rows.append(("training", f"{metrics['epochs']} epochs, {metrics['steps']} steps, {speed}"))
    if run.best.exists():
        rows.append(("best checkpoint", f"{run.best} (epoch {kept} of {metrics['epochs']})" if kept else run.best))
    rows += [
        ("run folder", run.path),
        *[("samples", picture) for picture in [run.figures / "samples.png"] if picture.exists()],
    ]
    if run.tensorboard.is_dir():
        command = "tensorboard --logdir " if which("tensorboard") else "make tensorboard LOGDIR="
        rows.append(("look at it", f"{command}{shlex.quote(str(run.path))}"))
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}" for name, value in rows]
    if metrics["pseudo_likelihood"]:
        lines.append(f"  {PSEUDO}")
    tested, total = metrics["tested_images"], metrics["data"]["images"]["test"]
    where = "the test split" if tested == total else f"{tested} of the {total} test images"
    title = f"Result on {where}, in nats per image" if tested else "Not tested (test=false)"
    return "\n".join(["", title, *lines])


def on_what(predictor: Predictor) -> str:
    """Describe the images and the seed of an evaluation."""
    return f"{predictor.split} split of {describe_data(predictor.datamodule)}; seed {predictor.seed}"


class EvaluationRecord:
    """Write each part of an evaluation to the run's ``metrics.json`` and TensorBoard as soon as it is computed.

    Earlier parts of the same weights and images are kept.

    Args:
        run: the run.
        split: the split that is evaluated.

    Raises:
        UserError: the folder is not writable.
    """

    def __init__(self, run: LoadedRun, split: str) -> None:
        if not os.access(run.folder.path, os.W_OK):
            raise UserError(f"{run.folder.path} cannot be written to: copy the run to where it can")
        self.folder = run.folder
        self.record = run.record
        self.split = split
        self.names = run.model.metric_names(run.datamodule.pixels)

    def keep(self, name: str, figures: dict[str, Any]) -> None:
        """Write a part to ``metrics.json`` and TensorBoard."""
        with locked(self.folder.path):
            with contextlib.suppress(UserError):  # another process may have written meanwhile
                self.record = read_record(self.folder.metrics)
            evaluation = self.record.get("evaluation", {})
            stamp = {key: figures[key] for key in ("checkpoint", "data")}
            earlier = evaluation.get(self.split, {})
            kept = {part: values for part, values in earlier.items() if stamp.items() <= values.items()}
            self.record = {**self.record, "evaluation": {**evaluation, self.split: {**kept, name: figures}}}
            write_json(self.folder.metrics, self.record)
            self._show(self.record["evaluation"][self.split])

    def _show(self, parts: dict[str, Any]) -> None:
        """Replace the table of all parts in TensorBoard's text tab.

        Scalars would be charts of one dot each, in front of those of the training.
        """
        suffix = f".evaluation-{self.split}"
        for old in self.folder.tensorboard.glob(f"events.out.tfevents.*{suffix}"):
            old.unlink()
        rows = ["| part | figure | value |", "|---|---|---|"]
        for key, value in flatten(parts):
            part, _, name = key.partition(".")
            if isinstance(value, int | float) and not name.endswith("seed"):
                printed, sign = as_printed(name, self.names["elbo"])
                number = value if isinstance(value, int) else f"{sign * value:.4f}"
                rows.append(f"| {part} | {printed} | {number} |")
        with SummaryWriter(str(self.folder.tensorboard), filename_suffix=suffix) as writer:
            writer.add_text(f"evaluation/{self.split}", "\n".join(rows), self.record.get("steps", 0))
