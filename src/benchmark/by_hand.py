"""The two training loops that ``src.train`` is compared with, written by hand for the same networks.

``python -m src.benchmark.by_hand tutorial|bare VARIANT ADDRESS OVERRIDE...`` runs one of them behind its gate.
"""

import copy
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

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
from src.system.machine import keep_pages, multiplies_bfloat16
from src.training.acceleration import on_gpu

TRIAL_STEPS = 5
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Kinds of the bare loop, and how the names of their variants end. A CUDA graph is a compiled step, captured.
KINDS = {"eager": "", "compiled": ", compiled", "graph": ", CUDA graph"}


class Network(nn.Module):
    """Encoder, head and decoder of a VAE with a Bernoulli likelihood, and its loss in as little code as possible."""

    def __init__(self, model: BaseVAE) -> None:
        super().__init__()
        self.encoder, self.head, self.decoder = model.encoder, model.posterior_head, model.decoder

    def forward(self, x: Tensor, mixed: bool = False) -> Tensor:
        """Negative ELBO of images ``[B, C, H, W]`` in nats per image; ``mixed`` runs both networks in bfloat16."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
            features = self.encoder(x)
        mean, log_variance = F.linear(features.float(), self.head.weight, self.head.bias).chunk(2, dim=1)
        log_variance = soft_bound(log_variance, MAX_LOG_VARIANCE)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
            logits = self.decoder(z)
        distortion = F.binary_cross_entropy_with_logits(logits.float(), x, reduction="sum")
        rate = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        return (distortion + rate) / len(x)


def scaled(images: Tensor) -> Tensor:
    """Scale stored uint8 images to the [0, 1] that :class:`Network` takes."""
    return images.float() / 255


def tutorial(cfg: DictConfig, datamodule: ImageDataModule, network: Network, device: torch.device) -> Iterator[None]:
    """Train as tutorials do: transforms per sample, no workers, float32, plain Adam, ``.item()`` at each step."""
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
    optimizer = torch.optim.Adam(network.parameters(), lr=cfg.optimizer.lr)
    while True:
        for x, _ in loader:
            loss = network(x.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            yield


def bare_step(
    cfg: DictConfig, datamodule: ImageDataModule, network: Network, device: torch.device, variant: str
) -> Callable[[], None]:
    """Return the least that trains: resident uint8 images, one gather per batch; no logging, guard or validation."""
    layout, precision, *kind = variant.split(", ")
    network.to(memory_format=LAYOUTS[layout])
    mode = "reduce-overhead" if kind == ["CUDA graph"] else "default"  # the former captures CUDA graphs
    loss_of = torch.compile(network, mode=mode) if kind else network
    optimizer = torch.optim.Adam(network.parameters(), lr=cfg.optimizer.lr, fused=True)
    images = datamodule.pool.images[datamodule.splits.train].to(device)
    size = min(datamodule.batch_size, len(images))

    def epoch() -> Iterator[Tensor]:
        order = torch.randperm(len(images), device=device)
        return (order[start : start + size] for start in range(0, len(images) - size + 1, size))

    batches = (batch for _ in itertools.count() for batch in epoch())

    def step() -> None:
        loss = loss_of(scaled(images[next(batches)]), precision == "bf16-mixed")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def variants(cfg: DictConfig, device: torch.device) -> list[str]:
    """Name the variants of the bare loop: memory layout, precision (bfloat16 where the device multiplies it), kind.

    It is compiled on a GPU, there also as a CUDA graph, and where ``compile=true`` asks for it: that may take minutes.
    """
    fast = device.type == "cuda" or multiplies_bfloat16()
    precisions = dict.fromkeys([cfg.trainer.precision, *(["bf16-mixed"] if fast else [])])
    kinds = ["eager"]
    kinds += ["compiled"] if cfg.compile is True or device.type == "cuda" else []
    kinds += ["graph"] if device.type == "cuda" else []
    return [f"{layout}, {p}{KINDS[kind]}" for layout in LAYOUTS for p in precisions for kind in kinds]


def fastest_of_each_kind(seconds: Mapping[str, float]) -> dict[str, str]:
    """Map each kind to its fastest variant, given the seconds per step of all variants."""
    fastest: dict[str, str] = {}
    for name in sorted(seconds, key=seconds.__getitem__):
        kind = next(kind for kind, end in reversed(KINDS.items()) if name.endswith(end))
        fastest.setdefault(kind, name)
    return {kind: fastest[kind] for kind in KINDS if kind in fastest}


def try_variants(
    cfg: DictConfig, datamodule: ImageDataModule, network: Network, device: torch.device
) -> dict[str, str]:
    """Run a few steps of every variant, in turns, and return the fastest of each kind."""

    def seconds_of(step: Callable[[], None]) -> float:
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    names = variants(cfg, device)
    steps = {name: bare_step(cfg, datamodule, copy.deepcopy(network), device, name) for name in names}
    rounds = [{name: seconds_of(step) for name, step in steps.items()} for _ in range(2 * TRIAL_STEPS)]
    measured = rounds[TRIAL_STEPS:]  # the first half warms up
    return fastest_of_each_kind({name: statistics.median(taken[name] for taken in measured) for name in names})


def main(loop: str, variant: str, address: str, *overrides: str) -> None:
    """Build what the overrides describe, and train as the gate allows; the bare loop without a variant tries all."""
    cfg = composed(*overrides)
    if loop == "bare":
        keep_pages()
    build.fill_precision(cfg)
    device = torch.device("cuda" if on_gpu(cfg) else "cpu")
    L.seed_everything(0, verbose=False)
    datamodule = build.build_datamodule(cfg)
    network = Network(build.build_model(cfg, datamodule)).to(device)
    parts: tuple[Any, ...] = (cfg, datamodule, network, device)
    note, step = None, None
    if loop == "bare" and not variant:
        note = try_variants(*parts)
    else:
        steps = tutorial(*parts) if loop == "tutorial" else None
        step = bare_step(*parts, variant) if steps is None else lambda: next(steps)
        step()  # before the gate: an error is reported as the loop starts
    gate = Gate(address, note, device.type == "cuda")
    while step is not None:
        step()
        gate.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
