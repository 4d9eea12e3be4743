"""Latents for other programs: npz or CSV files, and TensorBoard's projector."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.tensorboard import SummaryWriter

from src.data.base import Split
from src.exploration.grids import enlarge
from src.exploration.own_images import Pictures
from src.models.base import NO_CODES, BaseVAE
from src.models.predictor import Predictor
from src.system.errors import UserError
from src.system.files import readable, whole_file
from src.system.keys import KEYS, check

PROJECTED = 2_000  # images in the projector, at most
SPRITE = 4_096  # pixels of a side of the picture that holds all of its thumbnails
TAG = "latents"
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def form_of(embed: str | bool | None, model: BaseVAE) -> str | None:
    """Return the file format that ``embed=`` asks for: ``npz``, ``csv``, or None for no export.

    Raises:
        UserError: ``embed`` is none of these, or images have no codes.
    """
    check("embed", embed, KEYS["explore"]["embed"])
    if embed and not model.has_codes:
        raise UserError(f"embed={embed}: {NO_CODES}")
    return {True: "npz", False: None}.get(embed, embed)


def export(predictor: Predictor, own: Pictures | None, folder: Path, form: str) -> Iterator[Path]:
    """Write the posteriors of each split and of the user's pictures, one file each, and yield the paths.

    A file holds means ``[N, D]`` and standard deviations ``[N, D]``, with the file name (or the index in the data set)
    and the class of each image.
    """
    pool = predictor.datamodule.pool
    for split in SPLITS:
        codes = predictor.codes(split)
        names = [pool.names[i] if pool.names else str(i) for i in codes.index.tolist()]
        classes = [pool.classes[label] if label >= 0 else "" for label in codes.label.tolist()]
        yield _write(folder / f"{split}.{form}", names, classes, codes.mean.numpy(), codes.scale.numpy())
    if own is not None:
        mean, scale = predictor.posterior(own.x)
        yield _write(folder / f"pictures-{own.folder}.{form}", own.names, [""] * len(mean), mean.numpy(), scale.numpy())


def _write(path: Path, names: list[str], classes: list[str], mean: np.ndarray, scale: np.ndarray) -> Path:
    with whole_file(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez_compressed(file, name=np.array(names), label=np.array(classes), mean=mean, scale=scale)
        else:
            columns = [f"{what}_{i}" for what in ("mean", "scale") for i in range(mean.shape[1])]
            table = pd.DataFrame(np.concatenate([mean, scale], 1), columns=columns)
            table.insert(0, "class", classes)
            table.insert(0, "name", names)
            table.to_csv(temporary, index=False, float_format="%.6g")
    return path


def project(predictor: Predictor, writer: SummaryWriter, folder: Path) -> None:
    """Put the posterior means of (at most 2,000) images of the split into TensorBoard's projector, with thumbnails.

    This replaces an earlier export of the run.
    """
    (folder / "projector_config.pbtxt").unlink(missing_ok=True)
    shutil.rmtree(folder / "00000" / TAG, ignore_errors=True)
    codes, pool = predictor.codes(predictor.split), predictor.datamodule.pool
    side = enlarge(pool.images[:1]).shape[-1]
    count = min(PROJECTED, len(codes.mean), (SPRITE // side) ** 2)
    chosen = torch.arange(count) * len(codes.mean) // count
    classes = [" ".join(readable(name).split()) or "-" for name in pool.classes]  # one line per image
    names = [classes[label] if label >= 0 else "-" for label in codes.label[chosen].tolist()]
    thumbnails = enlarge(pool.images[codes.index[chosen]] / 255)
    writer.add_embedding(codes.mean[chosen], metadata=names, label_img=thumbnails, global_step=0, tag=TAG)
