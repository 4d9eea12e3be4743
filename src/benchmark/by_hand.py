"""Training loops written by hand for the networks of ``src.train``, to compare it with.

``python -m src.benchmark.by_hand LOOP ADDRESS OVERRIDE...`` runs one of :data:`LOOPS` behind its gate: its name and its
options, in one word, such as ``"bare eager channels_last"``.
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import lightning as L
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from src.benchmark.gate import Gate
from src.benchmark.settings import composed
from src.data.arrays import TorchvisionDataModule
from src.data.base import ImageDataModule
from src.data.folder import FolderDataModule
from src.models.base import BaseVAE
from src.models.objectives import soft_bound
from src.models.posteriors import MAX_LOG_VARIANCE
from src.runs import build
from src.system.errors import UserError
from src.system.machine import keep_pages
from src.training.acceleration import on_gpu


class Network(nn.Module):
    """Encoder, head and decoder of a VAE with a Bernoulli likelihood, and its loss in as little code as possible."""

    def __init__(self, model: BaseVAE) -> None:
        super().__init__()
        self.encoder, self.head, self.decoder = model.encoder, model.posterior_head, model.decoder

    def posterior(self, x: Tensor, mixed: bool = False) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance ``[B, D]`` of q(z|x); ``mixed`` runs the encoder in bfloat16."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
            features = self.encoder(x)
        mean, log_variance = F.linear(features.float(), self.head.weight, self.head.bias).chunk(2, dim=1)
        return mean, soft_bound(log_variance, MAX_LOG_VARIANCE)

    def forward(self, x: Tensor, mixed: bool = False) -> Tensor:
        """Negative ELBO of images ``[B, C, H, W]`` in nats per image; ``mixed`` runs both networks in bfloat16."""
        mean, log_variance = self.posterior(x, mixed)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
            logits = self.decoder(z)
        distortion = F.binary_cross_entropy_with_logits(logits.float(), x, reduction="sum")
        rate = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        return (distortion + rate) / len(x)


def scaled(images: Tensor) -> Tensor:
    """Scale stored uint8 images to the [0, 1] that :class:`Network` takes."""
    return images.float() / 255


class Task(NamedTuple):
    """What a loop trains."""

    cfg: DictConfig
    datamodule: ImageDataModule
    network: Network  # on its device
    device: torch.device
    done: Callable[[], None]  # to be called after each step

    @property
    def images(self) -> Tensor:
        """The training images: uint8 ``[N, C, H, W]``."""
        return self.datamodule.pool.images[self.datamodule.splits.train]


def tutorial(task: Task) -> None:
    """Train as tutorials do: transforms per sample, no workers, float32, plain Adam, ``.item()`` at each step.

    Raises:
        UserError: the images are neither in a folder nor torchvision's.
    """
    datamodule, network = task.datamodule, task.network
    pipeline = [transforms.ToTensor()]
    if isinstance(datamodule, FolderDataModule):
        size = (datamodule.image_size, datamodule.image_size)
        pipeline = [transforms.Grayscale(), transforms.Resize(size), *pipeline]
        images = datasets.ImageFolder(str(datamodule.root / "train"), transforms.Compose(pipeline))
    elif isinstance(datamodule, TorchvisionDataModule):
        if datamodule.image_size != 28:
            pipeline.insert(0, transforms.Resize(datamodule.image_size))
        images = datamodule.dataset(root=datamodule.root, train=True, transform=transforms.Compose(pipeline))
    else:
        raise UserError(f"there is no tutorial's loop for data={datamodule.name}: only for folders and torchvision's")
    network.to(memory_format=torch.contiguous_format)
    loader = DataLoader(images, batch_size=datamodule.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=task.cfg.optimizer.lr)
    while True:
        for x, _ in loader:
            loss = network(x.to(task.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            task.done()


def pythae(task: Task) -> None:
    """Train with the pipeline of the package pythae."""
    from src.benchmark import peer  # where pythae is installed

    peer.train(task)


def bare(task: Task, kind: str, layout: str) -> None:
    """Do the least that trains: resident uint8 images, one gather per batch; no logging, guard or validation.

    It trains in the precision of the experiment. ``kind`` is ``eager``, ``compiled``, or ``graph``: compiled and
    captured as CUDA graphs. ``layout`` is torch's name of a memory format.
    """
    network = task.network.to(memory_format=getattr(torch, layout))
    mode = "reduce-overhead" if kind == "graph" else "default"  # the former captures CUDA graphs
    loss_of = network if kind == "eager" else torch.compile(network, mode=mode)
    optimizer = torch.optim.Adam(network.parameters(), lr=task.cfg.optimizer.lr, fused=True)
    images = task.images.to(task.device)
    size = min(task.datamodule.batch_size, len(images))
    mixed = task.cfg.trainer.precision == "bf16-mixed"

    def epoch() -> Iterator[Tensor]:
        order = torch.randperm(len(images), device=task.device)
        return (order[start : start + size] for start in range(0, len(images) - size + 1, size))

    for batch in (batch for _ in itertools.count() for batch in epoch()):
        loss = loss_of(scaled(images[batch]), mixed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.done()


LOOPS = {"tutorial": tutorial, "pythae": pythae, "bare": bare}


def main(loop: str, address: str, *overrides: str) -> None:
    """Build what the overrides describe, and train as the gate allows."""
    # Lightning sets this as it is imported, and torch's optimizers then ask NVML at each step whether there is a GPU.
    # A loop that is written elsewhere does not import Lightning and would not pay for that.
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    cfg = composed(*overrides)
    build.fill_precision(cfg)
    device = torch.device("cuda" if on_gpu(cfg) else "cpu")
    L.seed_everything(0, verbose=False)
    datamodule = build.build_datamodule(cfg)
    network = Network(build.build_model(cfg, datamodule)).to(device)
    name, *options = loop.split()
    if name == "bare":
        keep_pages()
    LOOPS[name](Task(cfg, datamodule, network, device, partial(Gate(address).done, device)), *options)


if __name__ == "__main__":
    main(*sys.argv[1:])
