"""How an epoch grows with the number of images."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from src.benchmark.loops import WARM
from src.benchmark.measurement import Measurement
from src.benchmark.settings import RUN, composed
from src.benchmark.standin import write_jpegs
from src.data.splits import ImagePool
from src.runs import build
from src.system.errors import UserError
from src.system.files import quoted
from src.system.machine import keep_pages

IMAGE_SIZE = 128  # pixels of the large store's images
LARGE = 2**31  # bytes


def epochs(images: int, overrides: Sequence[str]) -> Iterator[Measurement]:
    """An epoch over N images and over 10 N, as ``src.train`` runs it; and the memory of one over a large store."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        seconds = {}
        for count in (images, 10 * images):
            write_jpegs(folder / str(count), count, (64, 64))
            run = folder / f"run{count}"
            paths = {"data.root": folder / str(count), "data.cache_dir": folder / "cache", "hydra.run.dir": run}
            places = [f"{key}={quoted(path)}" for key, path in paths.items()]
            command = [*RUN["epochs"], *places, "trainer.max_epochs=2", "~callbacks.figures", *overrides]
            with (folder / "output").open("w+") as output:
                if WARM.start("src.train", command, os.environ, output).wait():
                    output.seek(0)
                    raise UserError(f"a measured training failed: {output.read().strip().splitlines()[-1]}")
            metrics = json.loads((run / "metrics.json").read_text())
            seconds[count] = metrics["data"]["images"]["train"] / metrics["train_images_per_second"]
        memory = _memory_of_an_epoch(folder / "images.npy")
    yield Measurement("training an epoch of 10 N images / of N", seconds[10 * images] / seconds[images], "ratio")
    yield Measurement(f"N = {images}: an epoch", seconds[images], "s")
    yield Measurement("an epoch of batches from a memory-mapped file of 2,048 MiB adds", memory, "MiB")


def _memory_of_an_epoch(path: Path) -> float:
    """MiB of memory (without the disk's cached pages) that an epoch over a memory-mapped store adds."""
    count = LARGE // IMAGE_SIZE**2
    np.lib.format.open_memmap(path, "w+", np.uint8, (count, 1, IMAGE_SIZE, IMAGE_SIZE))
    cfg = composed("data=digits", f"data.image_size={IMAGE_SIZE}", "data.batch_size=256")
    datamodule = build.build_datamodule(cfg)
    images = torch.from_numpy(np.load(path, mmap_mode="c"))
    digests = [i.to_bytes(4, "big") for i in range(count)]
    datamodule._pool = ImagePool(images, torch.zeros(count).long(), [], np.full(count, ""), digests)
    keep_pages()
    batches = iter(datamodule.train_dataloader())
    datamodule.on_after_batch_transfer(next(batches), 0)
    before = _anonymous_mib()
    for batch in batches:
        datamodule.on_after_batch_transfer(batch, 0)
    return _anonymous_mib() - before


def _anonymous_mib() -> float:
    """Memory of this process that is its own, not pages of a file; NaN where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found.group(1)) / 1024 if found else float("nan")
