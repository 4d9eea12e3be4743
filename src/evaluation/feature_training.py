"""The feature network of a data set: a classifier that is trained on its training split, or a random network.

It is made once and kept; an interrupted training resumes.
"""

import contextlib
import copy
import hashlib
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from src.data.base import ImageDataModule
from src.data.batches import BatchIndices
from src.evaluation.feature_networks import FeatureNetwork, Features
from src.system.console import progress
from src.system.errors import memory_full, one_line
from src.system.files import whole_file
from src.system.seeds import random_state, set_random_state, stream

log = logging.getLogger(__name__)

FORMAT = 2  # increase it when the networks or their training change, so that old files are not read
STEPS, BATCH, MAX_EPOCHS, RATE = 1_500, 128, 30, 3e-3
CALIBRATED = 2_000  # images from which a random network takes the scales of its layers


class Kept(NamedTuple):
    """Where the feature network of a data set is kept."""

    path: Path
    network: FeatureNetwork  # of the shape that the file holds, with random weights
    kind: str  # "classifier" or "random network"

    @property
    def unfinished(self) -> Path:
        """The file of an interrupted training."""
        return self.path.with_suffix(".unfinished.pt")


def kept(datamodule: ImageDataModule, cache_dir: Path, device: torch.device) -> Kept:
    """Return where the network of a data set is kept: a classifier, or a random network without classes to tell apart.

    There is one file for each data fingerprint, labelling and kind of device, whose arithmetic it carries.
    """
    labels = datamodule.pool.labels[torch.cat(datamodule.splits[:2])]
    labelled = bool((labels >= 0).all()) and len(labels.unique()) > 1
    network = FeatureNetwork(*datamodule.image_shape[:2], len(datamodule.pool.classes) if labelled else 1)
    kind = "classifier" if labelled else "random network"
    label_hash = hashlib.sha256(labels.numpy().tobytes()).hexdigest()  # the fingerprint does not cover labels
    key = f"{datamodule.fingerprint[:16]}-{label_hash[:8]}-{kind.replace(' ', '-')}-{FORMAT}"
    key += "" if device.type == "cpu" else f"-{device.type}"
    return Kept(cache_dir / f"features-{datamodule.name}-{key}.pt", network, kind)


def own_features(datamodule: ImageDataModule, cache_dir: Path, device: torch.device) -> Features:
    """Return the data set's classifier, or a random network where its training images have fewer than two classes.

    It is made once and kept in ``cache_dir``; it does not depend on the seed of an evaluation.
    """
    place = kept(datamodule, cache_dir, device)
    path, network, kind = place
    labelled = kind == "classifier"
    facts = _read(path, network)
    if facts is None:
        log.info("Making the feature network of %s (once; kept in %s)", datamodule.name, path)
        with stream("features", FORMAT):
            network = FeatureNetwork(*datamodule.image_shape[:2], network.head.out_features).to(device)
            facts = _train(network, datamodule, place.unfinished) if labelled else _calibrate(network, datamodule)
        facts["made_on"] = device.type
        _write(path, network, facts)
        place.unfinished.unlink(missing_ok=True)
    weights = torch.cat([w.detach().cpu().double().flatten() for w in network.state_dict().values()])
    facts["hash"] = hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:16]
    return Features(kind, network, {"trained_on": datamodule.name if labelled else None, **facts}, labelled)


@torch.enable_grad()
def making(datamodule: ImageDataModule, cache_dir: Path, device: torch.device) -> float:
    """Measure on ``device`` and return the seconds that are left to make the network: 0 where it is kept."""
    place = kept(datamodule, cache_dir, device)
    if place.path.is_file():
        return 0.0
    network = place.network.to(device)
    x = torch.zeros(BATCH, *datamodule.image_shape, device=device)
    for _ in range(2):  # the first one warms up
        began = time.perf_counter()
        loss = network(x)[1].square().mean()
        loss.item()
        forward = time.perf_counter() - began
        loss.backward()
        network.head.weight.grad.sum().item()
        both = time.perf_counter() - began
    if place.kind == "random network":
        return CALIBRATED / BATCH * forward
    steps, an_epoch = _steps(datamodule)
    return max(0, steps - _epochs_done(place.unfinished) * an_epoch) * both


def _steps(datamodule: ImageDataModule) -> tuple[int, int]:
    """Return the optimizer steps of a classifier, in all and in an epoch."""
    an_epoch = -(-len(datamodule.splits.train) // BATCH)
    return min(STEPS, MAX_EPOCHS * an_epoch), an_epoch


def _epochs_done(unfinished: Path) -> int:
    """Return the epochs of an interrupted training, 0 where there is none that can be read."""
    with contextlib.suppress(Exception):  # a damaged file may raise anything; the training will report it
        return int(torch.load(unfinished, map_location="cpu", weights_only=True)["epochs"])
    return 0


def _train(network: FeatureNetwork, datamodule: ImageDataModule, unfinished: Path) -> dict[str, Any]:
    """Train on the training split and return the accuracy on the validation split.

    An interrupted training is resumed from ``unfinished``, which is written after every epoch, to the same weights.
    """
    pool, train, val = datamodule.pool, datamodule.splits.train, datamodule.splits.val
    device = next(network.parameters()).device
    sampler = BatchIndices(len(train), BATCH, shuffle=True)
    steps, _ = _steps(datamodule)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
    done = _go_on(unfinished, parts)
    epochs = -(-steps // len(sampler))
    if done:
        log.info("its training resumes after %d of %d epochs", done, epochs)
    for epoch in progress(range(done, epochs), "training the classifier", epochs, done):
        sampler.set_epoch(epoch)
        for positions in sampler:
            if schedule.last_epoch >= steps:
                break
            index = train[positions]
            _, logits = network(datamodule.scale(pool.images[index].to(device)))
            loss = cross_entropy(logits, pool.labels[index].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with whole_file(unfinished) as file:
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**state, "random": random_state(), "epochs": epoch + 1}, file)
    network.eval()
    with torch.no_grad():
        right = [
            network(datamodule.scale(pool.images[index].to(device)))[1].argmax(1).cpu() == pool.labels[index]
            for index in val.split(BATCH)
        ]
    return {"validation_accuracy": torch.cat(right).double().mean().item()}


@torch.no_grad()
def _calibrate(network: FeatureNetwork, datamodule: ImageDataModule) -> dict[str, Any]:
    """Leave the weights random, and normalize the layers by the statistics of training images.

    Random networks compare sets well where no network was trained for such images (Naeem et al. 2020, section 5).
    """
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None  # the plain mean over all batches
    device = next(network.parameters()).device
    for index in datamodule.spread("train", CALIBRATED).split(BATCH):
        network(datamodule.scale(datamodule.pool.images[index].to(device)))
    network.eval()
    return {"validation_accuracy": None}


def _go_on(unfinished: Path, parts: dict[str, Any]) -> int:
    """Restore an interrupted training and return the epochs that it has completed; 0 if there is none to resume."""
    if not unfinished.is_file():
        return 0
    fresh = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    try:
        saved = torch.load(unfinished, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        set_random_state(saved["random"])
        return int(saved["epochs"])
    except Exception as error:  # a damaged file may raise anything
        if memory_full(error):
            raise
        log.warning("%s cannot be read (%s): the classifier's training starts again", unfinished, one_line(error))
        for name, part in parts.items():
            part.load_state_dict(fresh[name])
        return 0


def _read(path: Path, network: FeatureNetwork) -> dict[str, Any] | None:
    """Load ``network`` from a file and return its facts; None if there is no readable file."""
    if not path.is_file():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(saved["weights"])
        return dict(saved["facts"])
    except Exception as error:  # a damaged file may raise anything
        if memory_full(error):
            raise
        log.warning("%s cannot be read (%s): making the network again", path, one_line(error))
        return None


def _write(path: Path, network: FeatureNetwork, facts: dict[str, Any]) -> None:
    with whole_file(path) as file:
        torch.save({"weights": {k: v.cpu() for k, v in network.state_dict().items()}, "facts": facts}, file)
