"""The two training loops that ``src.train`` is compared with, written by hand for the same networks.

``python -m src.benchmark.written tutorial|bare VARIANT DOOR OVERRIDE...`` is one of them, waiting at its gate.
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
from src.benchmark.loops import BARE
from src.benchmark.settings import composed
from src.data.arrays import TorchvisionDataModule
from src.data.base import ImageDataModule
from src.data.folder import FolderDataModule
from src.models.base import MAX_LOG_VARIANCE, BaseVAE
from src.models.objectives import soft_bound
from src.runs import build
from src.runs.build import fill_precision
from src.system.errors import UserError
from src.system.machine import keep_pages, multiplies_bfloat16
from src.training.acceleration import on_gpu

TRIAL_STEPS = 5
LAYOUTS = {"contiguous": "contiguous_format", "channels_last": "channels_last"}


class Network(nn.Module):
    """Encoder, head and decoder of a VAE with a Bernoulli likelihood, and its loss in the fewest words."""

    def __init__(self, model: BaseVAE) -> None:
        super().__init__()
        self.encoder, self.head, self.decoder = model.encoder, model.posterior_head, model.decoder

    def forward(self, x: Tensor, mixed: bool = False) -> Tensor:
        """Negative ELBO of the images ``[B, C, H, W]``, nats per image; ``mixed`` takes the bodies to bfloat16."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
            features = self.encoder(x)
        mean, log_variance = self.head(features.float()).chunk(2, dim=1)
        log_variance = soft_bound(log_variance, MAX_LOG_VARIANCE)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
            logits = self.decoder(z)
        distortion = F.binary_cross_entropy_with_logits(logits.float(), x, reduction="sum")
        rate = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        return (distortion + rate) / len(x)


def tutorial(cfg: DictConfig, datamodule: ImageDataModule, network: Network, device: torch.device) -> Iterator[str]:
    """As tutorials have it: a transform a sample, no workers, float32, torch's plain Adam, ``.item()`` each step."""
    steps = [transforms.ToTensor()]
    if isinstance(datamodule, FolderDataModule):
        root, size = datamodule.root / "train", datamodule.image_size
        images = datasets.ImageFolder(
            str(root), transforms.Compose([transforms.Grayscale(), transforms.Resize((size, size)), *steps])
        )
    elif isinstance(datamodule, TorchvisionDataModule):
        if datamodule.image_size != 28:
            steps.insert(0, transforms.Resize(datamodule.image_size))
        images = datamodule.dataset(root=datamodule.root, train=True, transform=transforms.Compose(steps))
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
            yield ""


def bare(
    cfg: DictConfig, datamodule: ImageDataModule, network: Network, device: torch.device, variant: str
) -> Iterator[Any]:
    """The least that trains: images resident as uint8, one gather a batch, no logging, no guard, no validation.

    Without a ``variant`` all of them are tried for a few steps, to yield the fastest of each kind.
    """
    images = datamodule.pool.images[datamodule.splits.train].to(device)
    steps: dict[str, Callable[[], None]] = {}
    for name in [variant] if variant else variants(cfg, device):
        layout, precision, *how = name.split(", ")
        clone = (network if variant else copy.deepcopy(network)).to(memory_format=getattr(torch, LAYOUTS[layout]))
        mode = "reduce-overhead" if how == ["CUDA graph"] else "default"  # the former captures them
        loss = torch.compile(clone, mode=mode) if how else clone
        mixed = precision == "bf16-mixed"
        steps[name] = _step(loss, clone, images, datamodule.batch_size, cfg.optimizer.lr, mixed)
    if not variant:
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(2 * TRIAL_STEPS):  # in turns; the first half warms up
            for name, step in steps.items():
                taken[name].append(_seconds_of(step, device))
        yield fastest_of_each_kind({name: statistics.median(times[TRIAL_STEPS:]) for name, times in taken.items()})
        return
    while True:
        steps[variant]()
        yield variant


def fastest_of_each_kind(seconds: Mapping[str, float]) -> dict[str, str]:
    """Of variants and the seconds of a step, the fastest of each kind in ``BARE`` that is among them."""
    fastest: dict[str, str] = {}
    for name in sorted(seconds, key=seconds.__getitem__):
        kind = next(kind for kind, end in reversed(BARE.items()) if name.endswith(end))
        fastest.setdefault(kind, name)
    return {kind: fastest[kind] for kind in BARE if kind in fastest}


def variants(cfg: DictConfig, device: torch.device) -> list[str]:
    """What the bare loop may be: memory layout, precision (bfloat16 where the device multiplies it), and its kind.

    Compiled on a GPU, there also as a CUDA graph, and where ``compile=true`` asks for it: it may take minutes.
    """
    fast = device.type == "cuda" or multiplies_bfloat16()
    precisions = dict.fromkeys([cfg.trainer.precision, *(["bf16-mixed"] if fast else [])])
    kinds = ["eager"]
    kinds += ["compiled"] if cfg.compile is True or device.type == "cuda" else []
    kinds += ["graph"] if device.type == "cuda" else []
    return [f"{layout}, {p}{BARE[kind]}" for layout in LAYOUTS for p in precisions for kind in kinds]


def _step(loss: Callable, network: nn.Module, images: Tensor, size: int, lr: float, mixed: bool) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True)
    size = min(size, len(images))

    def epoch() -> Iterator[Tensor]:
        order = torch.randperm(len(images), device=images.device)
        return (order[start : start + size] for start in range(0, len(images) - size + 1, size))

    batches = (batch for _ in itertools.count() for batch in epoch())

    def step() -> None:
        x = images[next(batches)].float() / 255
        value = loss(x, mixed)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def _seconds_of(step: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main(loop: str, variant: str, door: str, *overrides: str) -> None:
    """Build what the overrides say, warm up one step, and step as the gate allows."""
    cfg = composed(*overrides)
    if loop == "bare":
        keep_pages()
    fill_precision(cfg)
    device = torch.device("cuda" if on_gpu(cfg) else "cpu")
    L.seed_everything(0, verbose=False)
    datamodule = build.build_datamodule(cfg)
    network = Network(build.build_model(cfg, datamodule)).to(device)
    given = (cfg, datamodule, network, device)
    steps = bare(*given, variant) if loop == "bare" else tutorial(*given)
    gate = Gate(door, next(steps), device.type == "cuda")
    gate.wait()
    for _ in steps:
        gate.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
