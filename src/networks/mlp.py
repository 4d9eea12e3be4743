"""Fully connected networks: the encoder and decoder that the literature trains on MNIST.

Both are described by the widths of their hidden layers from the image inwards, so a decoder that mirrors an encoder has
the same list. ``depth`` counts the layers of a stage: one that changes the width, and ``depth - 1`` residual ones.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from src.networks.blocks import Residual, WideLinear, activation, flat, taken_by

MNIST_PIXELS = 28 * 28  # layers with no more inputs step as the literature's do; for wider ones see WideLinear


class MLPEncoder(nn.Module):
    """Map images of any size to a feature vector.

    Args:
        image_shape: channels, height and width ``(C, H, W)`` of the images.
        depth: layers a stage.
        widths: units of each stage, from the image inwards.
        act: name of the nonlinearity; ``gated`` makes layers ``(Wx + b) * sigmoid(Vx + c)``.
    """

    def __init__(self, image_shape: Sequence[int], depth: int, widths: Sequence[int], act: str = "relu") -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), *_hidden_layers(flat(image_shape), widths, depth, act))
        self.out_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, C, H, W]`` in [0, 1] to features ``[B, out_features]``."""
        return self.layers(x)


class MLPDecoder(nn.Module):
    """Map latent codes to the raw parameters of the likelihood of every pixel.

    It mirrors :class:`MLPEncoder`; a linear layer outputs the parameters.

    Args:
        latent_dim: entries of a latent code.
        image_shape: the maps that the likelihood needs, then height and width of the images.
        depth: layers a stage.
        widths: units of each stage, from the image inwards; the last are next to the code.
        act: as in :class:`MLPEncoder`.
    """

    def __init__(
        self, latent_dim: int, image_shape: Sequence[int], depth: int, widths: Sequence[int], act: str = "relu"
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_hidden_layers(latent_dim, reversed(widths), depth, act),
            nn.Linear(widths[0], flat(image_shape)),
            nn.Unflatten(1, tuple(image_shape)),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Map latent codes ``[B, latent_dim]`` to raw likelihood parameters ``[B, C, H, W]``."""
        return self.layers(z)

    @torch.no_grad()
    def start_at(self, raw: Tensor) -> None:
        """Let parameters ``[C, H, W]`` be the biases of the output."""
        self.layers[-2].bias.copy_(raw.flatten())


def _hidden_layers(inputs: int, widths: Iterable[int], depth: int, act: str) -> list[nn.Module]:
    """Return the layers of all stages, in the order in which a vector of ``inputs`` entries meets their widths."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += _dense(inputs, width, act)
        layers += [Residual(nn.Sequential(*_dense(width, width, act)), (width,)) for _ in range(depth - 1)]
        inputs = width
    return layers


def _dense(inputs: int, outputs: int, act: str) -> list[nn.Module]:
    return [WideLinear(inputs, taken_by(act, outputs), base=MNIST_PIXELS), activation(act)]
