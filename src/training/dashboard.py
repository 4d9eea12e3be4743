"""What a run shows: TensorBoard while it trains, pictures when it ends."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.model_summary import ModelSummary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchvision.utils import save_image

from src.data.base import Split
from src.exploration import gallery, grids, overview
from src.models.base import BaseVAE
from src.models.predictor import Predictor
from src.system.files import whole_file
from src.training.history import History


class Scalars(TensorBoardLogger):
    """Lightning's logger without the number of the epoch, which it adds to all that an epoch logs.

    TensorBoard sorts charts by name: that one came first, before any loss.
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log what was measured."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


class Dashboard(Callback):
    """Everything in TensorBoard that is no metric of a split.

    Charts with training and validation together, step-wise loss, gradient norm and learning rate, reconstructions and
    samples as images, the rate of each latent as a histogram, hyperparameters with ``val/elbo``, config and summary.

    Args:
        every_n_epochs: how often images are drawn.
        num_images: how many of each, a multiple of 8.
        hyperparameters: flat names and values for the HParams tab; set by the entry point.
        config: the run's config as YAML text; set by the entry point.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        num_images: int = 16,
        hyperparameters: dict[str, Any] | None = None,
        config: str = "",
    ) -> None:
        self.every_n_epochs = every_n_epochs
        self.num_images = num_images
        self.hyperparameters = hyperparameters or {}
        self.config = config
        self.in_a_sweep = False  # TensorBoard takes the columns of the first run that names some: only the sweep does

    def _writer(self, trainer: Trainer) -> SummaryWriter | None:
        board = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
        return board.experiment if board is not None and trainer.is_global_zero else None

    def on_fit_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Hyperparameters, config, summary and the layout of the charts."""
        if (writer := self._writer(trainer)) is None:
            return
        names = pl_module.metric_names(trainer.datamodule.pixels)
        writer.add_custom_scalars(
            {
                "nats per image": {
                    names.get(metric, metric): ["Multiline", [f"train/{metric}", f"val/{metric}"]]
                    for metric in ("elbo", "distortion", "rate", "loss")
                }
            }
        )
        # torch's own add_hparams would open a second run; this writes the three records into this one.
        metrics = dict.fromkeys(("val/elbo", "test/elbo"))
        experiment, *session = hparams(self.hyperparameters, metrics)
        for record in session if self.in_a_sweep else (experiment, *session):
            writer.file_writer.add_summary(record)
        writer.add_text("config", f"```yaml\n{self.config}\n```")
        writer.add_text("model", f"```\n{ModelSummary(pl_module, max_depth=3)}\n```")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: BaseVAE, optimizer: torch.optim.Optimizer) -> None:
        """Terms of the loss, gradient norm (the guard's), learning rate and KL weight, every ``log_every_n_steps``."""
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
        """Images and the histogram of the rates."""
        if (writer := self._writer(trainer)) is None or trainer.current_epoch % self.every_n_epochs:
            return
        predictor = Predictor(pl_module, trainer.datamodule, "val", seed=trainer.datamodule.seed)
        originals = overview.originals_of(predictor, self.num_images)
        means = torch.cat([*predictor.reconstruct([originals])])
        samples = torch.cat([*predictor.generate(self.num_images)])
        writer.add_image("reconstructions", grids.stacks([originals, means]), trainer.global_step)
        writer.add_image("samples", grids.grid(samples), trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """The module has the rates of the latents by now."""
        if (writer := self._writer(trainer)) is not None:
            writer.add_histogram("rate_per_latent", pl_module.rate_per_latent, trainer.global_step)


class Figures(Callback):
    """Writes the run's pictures: reconstructions, samples, loss curves, and a small strip for a sweep's contact sheet.

    With test images and the tested weights, or where no test is to come with validation images when training ends.

    Args:
        folder: where the PNG files go.
        tested: whether a test follows the training.
    """

    def __init__(self, folder: str, tested: bool = True) -> None:
        self.folder = Path(folder)
        self.tested = tested

    def on_fit_end(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Draw with the last weights."""
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
        history = next((c for c in trainer.callbacks if isinstance(c, History)), None)
        epochs = history.epochs if history is not None else []
        predictor = Predictor(model, trainer.datamodule, split, seed=trainer.datamodule.seed, epochs=epochs)
        pictures = gallery.SHORT if epochs else gallery.SHORT[:-1]
        for name in pictures:
            gallery.write(gallery.PICTURES[name](predictor), self.folder / f"{name}.png")
        self._draw_strip(predictor)

    def _draw_strip(self, predictor: Predictor) -> None:
        """Originals, their reconstructions and two rows of samples, small, for a sweep's contact sheet."""
        originals = overview.originals_of(predictor, grids.COLUMNS)
        reconstructions = torch.cat([*predictor.reconstruct([originals])])
        samples = torch.cat([*predictor.generate(2 * len(originals))])
        with whole_file(self.folder / "strip.png") as file:
            save_image(grids.strip([originals, reconstructions, samples]), file, format="png")
