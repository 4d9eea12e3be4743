"""The package pythae (Chadebec et al. 2022): its VAE and its training pipeline around the networks of ``src.train``.

Import this only where pythae is installed.
"""

from collections.abc import Callable

import torch
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor

from src.benchmark.by_hand import Network, Task, scaled


class Encoder(BaseEncoder):
    """The encoder and head of a network, as pythae wants them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> ModelOutput:
        """Return mean and log-variance of q(z|x) of images ``[B, C, H, W]``."""
        mean, log_variance = self.network.posterior(x)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    """The decoder of a network, as pythae wants it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.decoder = network.decoder

    def forward(self, z: Tensor) -> ModelOutput:
        """Return the means ``[B, C, H, W]`` in [0, 1] of p(x|z) of codes ``[B, D]``."""
        return ModelOutput(reconstruction=self.decoder(z).sigmoid())


class Step(TrainingCallback):
    """Call ``done`` after each step."""

    def __init__(self, done: Callable[[], None]) -> None:
        self.done = done

    def on_train_step_end(self, training_config: BaseTrainerConfig, **kwargs: object) -> None:
        """Count the step."""
        self.done()


def vae(network: Network) -> VAE:
    """Return pythae's VAE, which shares the network's weights; ``vae({"data": x}).loss`` is in nats per image."""
    return VAE(VAEConfig(reconstruction_loss="bce"), Encoder(network), Decoder(network))


def train(task: Task) -> None:
    """Train as pythae does, in float32; what it writes goes to the run's folder."""
    task.network.to(memory_format=torch.contiguous_format)
    config = BaseTrainerConfig(
        output_dir=task.cfg.run_dir,
        per_device_train_batch_size=task.datamodule.batch_size,
        learning_rate=task.cfg.optimizer.lr,
        num_epochs=1_000_000,
        no_cuda=task.device.type != "cuda",
    )
    TrainingPipeline(vae(task.network), config)(scaled(task.images), callbacks=[Step(task.done)])
