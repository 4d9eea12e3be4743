"""The two training loops that ``src.train`` is compared with, written by hand for the same networks.

``python -m src.benchmarking.written tutorial|bare DOOR OVERRIDE...`` is one of them, waiting at its gate.
"""

import copy
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from src import runs
from src.acceleration import fill_precision
from src.benchmarking.gate import Gate
from src.benchmarking.standin import NAMES
from src.data.arrays import TorchvisionDataModule
from src.data.base import ImageDataModule
from src.data.folder import FolderDataModule
from src.errors import UserError
from src.machine import keep_pages
from src.models.base import MAX_LOG_VARIANCE, BaseVAE
from src.objectives import soft_bound

CONF = Path(__file__).parents[2] / "conf"
TRIAL_STEPS = 5


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


def tutorial(cfg: DictConfig, datamodule: ImageDataModule, network: Network, device: torch.device) -> Iterator[None]:
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
            yield


def bare(cfg: DictConfig, datamodule: ImageDataModule, network: Network, device: torch.device) -> Iterator[str]:
    """The least that trains: images resident as uint8, one gather a batch, no logging, no guard, no validation.

    Of the variants (memory layout; compiled where ``compile=true`` asks for it; on a GPU captured as a graph, too) the
    fastest one in a short trial is kept. Yields its name each step.
    """
    images = datamodule.pool.images[datamodule.splits.train].to(device)
    mixed = cfg.trainer.precision == "bf16-mixed"
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    choices = [False, True] if cfg.compile is True or device.type == "cuda" else [False]  # a GPU's rival is a graph
    mode = "reduce-overhead" if device.type == "cuda" else "default"  # the former captures CUDA graphs
    variants: dict[str, Callable[[], None]] = {}
    for layout, compile_ in itertools.product(layouts, choices):
        clone = copy.deepcopy(network).to(memory_format=layouts[layout])
        loss = torch.compile(clone, mode=mode) if compile_ else clone
        name = f"{layout}{', compiled' if compile_ else ''}"
        variants[name] = _step(loss, clone, images, datamodule.batch_size, cfg.optimizer.lr, mixed)
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(2 * TRIAL_STEPS):  # in turns; the first half warms up
        for name, step in variants.items():
            taken[name].append(_seconds_of(step, device))
    name = min(variants, key=lambda name: statistics.median(taken[name][TRIAL_STEPS:]))
    step = variants[name]
    variants.clear()
    while True:
        step()
        yield name


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


def composed(*overrides: str) -> DictConfig:
    """The config of ``python -m src.train <overrides>``."""
    GlobalHydra.instance().clear()  # the benchmark's own command was composed by Hydra too
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def refuse_what_cannot_be_compared(cfg: DictConfig) -> None:
    """See that a config asks for nothing that the loops written by hand do not do.

    Raises:
        UserError: it does.
    """
    asked = {
        "model.kl_weight": (cfg.model.kl_weight, (1,)),
        "model.kl_warmup_steps": (cfg.model.kl_warmup_steps, (0,)),
        "model.likelihood": (cfg.model.likelihood["_target_"].rsplit(".", 1)[1], ("BernoulliLikelihood",)),
        "data.binarize": (cfg.data.binarize, ("none",)),
        "data.dequantize": (cfg.data.dequantize, (False,)),
        "data.name": (cfg.data.name, tuple(NAMES)),
        "optimizer": (cfg.optimizer["_target_"], ("torch.optim.Adam",)),
        "trainer.precision": (cfg.trainer.precision, ("auto", "32-true", "bf16-mixed")),
        "trainer.gradient_clip_val": (cfg.trainer.gradient_clip_val, (None,)),
        "trainer.accumulate_grad_batches": (cfg.trainer.accumulate_grad_batches, (1,)),
    }
    for key, (value, known) in asked.items():
        if value not in known:
            raise UserError(f"{key}={value}: the loops to compare with know {', '.join(map(str, known))} only")


def main(loop: str, door: str, *overrides: str) -> None:
    """Build what the overrides say, warm up one step, and step as the gate allows."""
    cfg = composed(*overrides)
    if loop == "bare":
        keep_pages()
    fill_precision(cfg)
    device = torch.device("cpu" if cfg.trainer.accelerator == "cpu" else "cuda")
    L.seed_everything(0, verbose=False)
    datamodule = runs.build_datamodule(cfg)
    network = Network(runs.build_model(cfg, datamodule)).to(device)
    steps = {"tutorial": tutorial, "bare": bare}[loop](cfg, datamodule, network, device)
    gate = Gate(int(door), next(steps) or "", device.type == "cuda")
    gate.wait()
    for _ in steps:
        gate.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
