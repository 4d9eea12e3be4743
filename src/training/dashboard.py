"""Show a run: log to TensorBoard during training, write pictures at the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_summary import ModelSummary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchvision.utils import save_image

from src.data.base import Split
from src.exploration import gallery, grids, latents, overview
from src.models.base import BaseVAE
from src.models.predictor import Predictor
from src.system.contents import PLAN
from src.system.files import whole_file
from src.training.epoch_means import EpochMeans
from src.training.history import epochs_of

DOTS = 2_000  # codes in the small picture of a run


class Scalars(TensorBoardLogger):
    """Log to TensorBoard as Lightning does, without a chart of the epoch and with one HParams record a run."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics without the ``epoch`` that Lightning adds: TensorBoard would show it before any loss."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **options: Any) -> None:
        """Log hyperparameters beside ``val/elbo`` and ``test/elbo``.

        torch's ``add_hparams`` would create a second run (https://github.com/pytorch/pytorch/issues/32651), and
        Lightning's method a metric ``hp_metric``. In a sweep only the sweep names the columns: TensorBoard takes those
        of the first run that names any.
        """
        experiment, *session = hparams(dict(params), dict.fromkeys(("val/elbo", "test/elbo")))
        in_a_sweep = (Path(self.save_dir).parent / PLAN).exists()
        for record in session if in_a_sweep else (experiment, *session):
            self.experiment.file_writer.add_summary(record)

    @rank_zero_only
    def log_text(self, name: str, text: str) -> None:
        """Log Markdown text."""
        self.experiment.add_text(name, text)


def log_image(logger: Logger, name: str, image: torch.Tensor, step: int) -> None:
    """Log an image [C, H, W] to TensorBoard or Weights & Biases; other loggers take no images."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, image, step)
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [image], step)


class Dashboard(Callback):
    """Log the terms of single steps, and images to the loggers that take them.

    TensorBoard also gets charts that combine training and validation, a histogram of the rates of the latents, and a
    summary of the model.

    Args:
        every_n_epochs: number of epochs between two drawings.
        num_images: number of reconstructions and of samples, a multiple of 8.
    """

    def __init__(self, every_n_epochs: int = 1, num_images: int = 16) -> None:
        self.every_n_epochs = every_n_epochs
        self.num_images = num_images

    def _writer(self, trainer: Trainer) -> SummaryWriter | None:
        board = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        return board.experiment if board is not None and trainer.is_global_zero else None

    def on_fit_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Log the layout of the charts and the summary of the model."""
        if (writer := self._writer(trainer)) is None:
            return
        names = pl_module.metric_names(trainer.datamodule.pixels)
        writer.add_custom_scalars(
            {
                "nats per image": {
                    names.get(metric, metric): ["Multiline", [f"train/{metric}", f"val/{metric}"]]
                    for metric in ("elbo", "distortion", "rate", "loss")
                    if pl_module.has_elbo or metric not in ("elbo", "rate")
                }
            }
        )
        writer.add_text("model", summary_table(pl_module))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: BaseVAE, optimizer: torch.optim.Optimizer) -> None:
        """Log loss terms, the guard's gradient norm, learning rate and KL weight every ``log_every_n_steps``."""
        if trainer.log_every_n_steps and trainer.global_step % trainer.log_every_n_steps == 0:
            terms = zip(("loss", "distortion", "rate"), pl_module.step_terms.tolist(), strict=True)
            step = {f"step/{name}": value for name, value in terms}
            if pl_module.step_grad_norm is not None:
                step["step/grad_norm"] = float(pl_module.step_grad_norm)
            step["step/learning_rate"] = optimizer.param_groups[0]["lr"]
            step["step/kl_weight"] = pl_module.current_kl_weight
            for logger in trainer.loggers:
                logger.log_metrics(step, trainer.global_step)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Draw reconstructions and samples."""
        image_loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | WandbLogger)]
        if not (image_loggers and trainer.is_global_zero) or trainer.current_epoch % self.every_n_epochs:
            return
        predictor = Predictor(pl_module, trainer.datamodule, "val", seed=trainer.datamodule.seed)
        originals = overview.originals_of(predictor, self.num_images)
        means = torch.cat([*predictor.reconstruct([originals])])
        samples = torch.cat([*predictor.generate(self.num_images)])
        for logger in image_loggers:
            log_image(logger, "reconstructions", grids.stacks([originals, means]), trainer.global_step)
            log_image(logger, "samples", grids.grid(samples), trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Log the rates of the latents."""
        if (writer := self._writer(trainer)) is not None and pl_module.has_elbo:
            means = next(callback for callback in trainer.callbacks if isinstance(callback, EpochMeans))
            writer.add_histogram("rate_per_latent", means.rates, trainer.global_step)


def summary_table(module: BaseVAE) -> str:
    """Return the modules and their numbers of parameters as a Markdown table.

    Lightning's own table has a column of FLOPs, which is 0 without an ``example_input_array``.
    """
    summary = ModelSummary(module, max_depth=3)
    rows = zip(summary.layer_names, summary.layer_types, summary.param_nums, strict=True)
    lines = ["| name | type | parameters |", "|---|---|---:|", *(f"| {n} | {kind} | {p:,} |" for n, kind, p in rows)]
    return "\n".join([*lines, f"| | total | {summary.total_parameters:,} |"])


class Figures(Callback):
    """Write the run's pictures: reconstructions, samples, loss curves, and a small strip for a sweep's contact sheet.

    They are drawn after the test, from test images; without a test, at the end of training from validation images.

    Args:
        folder: folder of the PNG files.
        tested: whether a test follows the training.
    """

    def __init__(self, folder: str, tested: bool = True) -> None:
        self.folder = Path(folder)
        self.tested = tested

    def on_fit_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Draw with the last weights if no test follows."""
        if self.tested:
            return
        training = pl_module.training
        pl_module.eval()
        self._draw(trainer, pl_module, "val")
        pl_module.train(training)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Draw with the tested weights."""
        self._draw(trainer, pl_module, trainer.datamodule.tested)

    def _draw(self, trainer: Trainer, model: BaseVAE, split: Split) -> None:
        if not trainer.is_global_zero:
            return
        epochs = epochs_of(trainer)
        predictor = Predictor(model, trainer.datamodule, split, seed=trainer.datamodule.seed, epochs=epochs)
        pictures = gallery.SHORT if epochs else gallery.SHORT[:-1]
        for name in pictures:
            gallery.write(gallery.PICTURES[name](predictor), self.folder / f"{name}.png")
        self._draw_strip(predictor, split)

    def _draw_strip(self, predictor: Predictor, split: Split) -> None:
        """Write a small picture for a contact sheet: originals, their reconstructions, two rows of samples.

        A model with two latents adds a square of codes in the colours of their classes.
        """
        originals = overview.originals_of(predictor, grids.COLUMNS)
        reconstructions = torch.cat([*predictor.reconstruct([originals])])
        samples = torch.cat([*predictor.generate(2 * len(originals))])
        strip = grids.strip([originals, reconstructions, samples])
        if predictor.model.has_codes and predictor.model.latent_dim == 2:
            parts = [(predictor.posterior(batch.x)[0], batch.label) for batch, _ in predictor.batches(split, DOTS)]
            codes, labels = (torch.cat(column) for column in zip(*parts, strict=True))
            strip = torch.cat([strip, latents.dots(codes, labels, strip.shape[2])], 1)
        with whole_file(self.folder / "strip.png") as file:
            save_image(strip, file, format="png")
