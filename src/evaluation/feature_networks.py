"""Feature networks for distances between sets of images; none needs a download.

They are a small classifier or a random network, see :mod:`src.evaluation.feature_training`, and FID's Inception network
if torch-fidelity and its weights are installed. A distance is named for its network, as numbers in different features
are not comparable.
"""

import hashlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.models.footprint import fitting
from src.system.errors import TOO_LARGE, UserError

DIMENSIONS = 64
LARGE = 64  # pixels a side beyond which the first convolution has stride 2 too
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # the file torch-fidelity downloads
INCEPTION_SHA256 = "6726825d"  # the first digits of its digest


class FeatureNetwork(nn.Module):
    """Map images ``[N, C, H, W]`` to 64 features, by 3x3 convolutions of stride 2 and a mean, and to class logits.

    Args:
        channels: C.
        side: H = W, pixels; convolutions are added until at most 4 are left.
        classes: classes to tell apart.
    """

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        stride = 1 if side <= LARGE else 2
        layers, width, side = _block(channels, 16, stride), 16, -(-side // stride)
        while side > 4 or width < DIMENSIONS:
            layers += _block(width, min(2 * width, DIMENSIONS), stride=2)
            width, side = min(2 * width, DIMENSIONS), -(-side // 2)
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(DIMENSIONS, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features ``[N, 64]`` and logits ``[N, classes]``."""
        features = self.body(x)
        return features, self.head(features)


def _block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class Inception(nn.Module):
    """FID's Inception-v3 (Heusel et al. 2017), by torch-fidelity: 2,048 features and 1,008 logits."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits of images in [0, 1], grey or colour."""
        levels = (x * 255).round().to(torch.uint8)
        return self.network(levels.expand(-1, 3, -1, -1))


@dataclass
class Features:
    """A frozen feature network and its description.

    Attributes:
        name: ``classifier``, ``random network`` or ``inception-v3``; metrics are named for it.
        network: maps images to features and logits.
        facts: its origin, for the record.
        has_classes: whether its logits are those of classes.
    """

    name: str
    network: nn.Module
    facts: dict[str, Any]
    has_classes: bool

    @torch.no_grad()
    def __call__(self, batches: Iterable[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return features ``[N, F]`` and logits ``[N, classes]``, float64 on the CPU, of batches in [0, 1].

        Raises:
            UserError: a feature is not finite.
        """
        network = self.network.to(device).eval()
        given = (batch.to(device).clamp(0, 1) for batch in batches)
        parts = [network(x) for batch in given for x in batch.split(fitting(network, batch[:1]))]
        features, logits = (torch.cat([side.double().cpu() for side in column]) for column in zip(*parts, strict=True))
        if not features.isfinite().all():
            raise UserError(f"the images are not finite: {TOO_LARGE}")
        return features, logits


def inception_features(wanted: bool | None) -> Features | None:
    """Return FID's own network; None if it is not installed or not wanted.

    Args:
        wanted: True requires it, None takes it if it is installed.

    Raises:
        UserError: it is required but not installed, or its file has another hash.
    """
    weights = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS
    missing = [
        needed
        for needed, found in (
            ("the package torch-fidelity (pip install torch-fidelity)", importlib.util.find_spec("torch_fidelity")),
            (f"its weights {weights}", weights.is_file()),
        )
        if not found
    ]
    if wanted is False or (wanted is None and missing):
        return None
    if missing:
        raise UserError(f"samples.inception=true needs {' and '.join(missing)}: not found")
    with weights.open("rb") as file:
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(INCEPTION_SHA256):
            raise UserError(f"{weights} is not FID's network (its SHA-256 differs): delete it and fetch it again")
    return Features("inception-v3", Inception(weights), {"trained_on": "ImageNet", "weights": weights.name}, True)
