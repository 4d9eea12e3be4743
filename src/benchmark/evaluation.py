"""The importance bound, beside loops over images."""

import statistics
from collections.abc import Iterator

import torch
from torch import Tensor

from src.benchmark.measurement import Measurement, seconds
from src.benchmark.settings import composed
from src.evaluation.importance import importance_bound
from src.evaluation.likelihood import samples_at_once
from src.models.base import BaseVAE
from src.runs import build
from src.system.machine import keep_pages
from src.training.acceleration import peak_memory


def evaluation(samples: int, device: str) -> Iterator[Measurement]:
    """The importance bound beside loops over images: a sample at a time, and all samples of an image at once.

    The loops run with the allocator as it comes, ours as ``src.evaluate`` sets it.
    """
    model, x = _subject(device)

    def speed(images: torch.Tensor, at_once: int, count: int) -> float:
        def work() -> object:
            return importance_bound(model, images, count, at_once)

        work()
        return len(images) * count / statistics.median(seconds(work) for _ in range(3))

    tutorial = speed(x[:1], 1, 100)
    all_at_once = speed(x[:1], samples, samples)
    keep_pages()
    group, at_once = samples_at_once(28 * 28, samples)
    ours = speed(x[:group], at_once, samples)
    yield Measurement(f"importance bound, K = {samples}: ours / a sample at a time", ours / tutorial, "ratio")
    yield Measurement(f"importance bound, K = {samples}: ours / an image at a time", ours / all_at_once, "ratio")
    yield Measurement(f"importance bound, K = {samples}: ours", ours, "decodings/s")
    yield Measurement("1,000 images would take", 1000 * samples / ours, "s")


def memory(samples: int, device: str) -> Iterator[Measurement]:
    """What ten times as many samples add to the memory that the importance bound takes."""
    keep_pages()
    model, x = _subject(device)
    group, at_once = samples_at_once(28 * 28, samples)
    peaks = []
    for count in (samples, 10 * samples):
        importance_bound(model, x[:group], count, min(at_once, count))
        peaks.append(peak_memory()["gpu" if device == "cuda" else "process"])
    yield Measurement(f"importance bound, K = {samples}: peak memory", peaks[0], "MiB")
    yield Measurement(f"importance bound, K = {10 * samples}: peak memory", peaks[1], "MiB")


def _subject(device: str) -> tuple[BaseVAE, Tensor]:
    """The lstm model, untrained, and 8 random images."""
    cfg = composed("model=lstm", "data=digits", "data.image_size=28")
    model = build.build_model(cfg, build.build_datamodule(cfg)).eval().to(device)
    return model, torch.rand(8, 1, 28, 28, device=device)
