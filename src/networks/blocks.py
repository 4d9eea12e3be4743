"""Building blocks shared by the encoders and decoders, and the arithmetic of their sizes."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from src.system.errors import UserError

Norm = Literal["before", "after", "none"]
ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "gated": partial(nn.GLU, dim=1),
}
LARGEST_SIZE = 1024  # pixels; the largest side that an error message considers


def activation(name: str) -> nn.Module:
    """Return the nonlinearity called ``name``; LeakyReLU has slope 0.01.

    ``gated`` makes of the layer before it ``(Wx + b) * sigmoid(Vx + c)`` (Dauphin et al. 2017, arXiv 1612.08083; in
    VAEs Tomczak & Welling 2018, arXiv 1705.07120): the layer outputs value and gate, :func:`taken_by` says how many.

    Raises:
        UserError: ``name`` is not one of ``ACTIVATIONS``.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"unknown activation {name!r}: choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def taken_by(act: str, features: int) -> int:
    """Return how many outputs of a layer the nonlinearity called ``act`` takes to give ``features``."""
    return 2 * features if act == "gated" else features


def norm_and_activation(features: int, norm: Norm, act: str, *, spatial: bool = True) -> list[nn.Module]:
    """Return the modules that follow a layer: batch norm ``before`` the nonlinearity, ``after`` it, or ``none``.

    They give ``features`` channels or entries, of as many as :func:`taken_by` says. ``spatial`` chooses between
    BatchNorm2d for maps ``[B, C, H, W]`` and BatchNorm1d for vectors ``[B, F]``.
    """
    make = nn.BatchNorm2d if spatial else nn.BatchNorm1d
    match norm:
        case "before":
            return [make(taken_by(act, features)), activation(act)]
        case "after":
            return [activation(act), make(features)]
        case "none":
            return [activation(act)]
        case _:
            raise UserError(f"unknown norm {norm!r}: choose before, after or none")


class Residual(nn.Module):
    """One extra layer of a stage: ``x + gain * f(x)``, size and features kept.

    The gain is one learned number a feature that starts at 0.1, so a stage of any depth starts close to a
    stage of depth one and gradients reach the first layer (LayerScale, Touvron et al. 2021, arXiv 2103.17239).

    Args:
        branch: the layer f.
        gain_shape: of the gain, which is broadcast over the layer's output.
    """

    def __init__(self, branch: nn.Module, gain_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.branch = branch
        self.gain = nn.Parameter(torch.full(gain_shape, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of ``x``."""
        return x + self.gain * self.branch(x)


class ResidualConv(Residual):
    """One extra convolution of a stage: ``x + gain * f(conv3x3(x))`` of maps ``[B, C, H, W]``."""

    def __init__(self, channels: int, norm: Norm, act: str) -> None:
        conv = nn.Conv2d(channels, taken_by(act, channels), 3, padding=1)
        super().__init__(nn.Sequential(conv, *norm_and_activation(channels, norm, act)), (channels, 1, 1))


class DrawingLayer(nn.ConvTranspose2d):
    """The decoder's last transposed convolution, which outputs the likelihood's parameters, initialised by its fan-in.

    PyTorch computes the fan-in of a transposed convolution from its output channels: a layer from 64 channels to 1
    starts about 5 times too large, and the first losses are a multiple of a grey image's. An output pixel of a
    strided layer has ``in_channels * kernel^2 / stride^2`` inputs.
    """

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly within ``1 / sqrt(fan_in)``, as PyTorch does for convolutions."""
        fan_in = self.in_channels * flat(self.kernel_size) / flat(self.stride)
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)


class WideLinear(nn.Linear):
    """A linear layer whose learning rate is to be multiplied by ``step_factor = min(1, base / in_features)``.

    Adam moves every weight by about the learning rate, so the first step can move the output of a layer with ``n``
    inputs by ``n * lr``. For 16,384 inputs that changes a log-variance head, and with it the loss, by two orders of
    magnitude. With the factor the output moves no further than that of a layer with ``base`` inputs (maximal update
    parametrization, Yang et al. 2022, arXiv 2203.03466, table 8). :func:`src.training.optimizers.optimizer_of` applies
    it for optimizers whose steps do not scale with the gradient.
    """

    _version = 2  # version 1 stored the weight divided by step_factor, and multiplied the output by it

    def __init__(self, in_features: int, out_features: int, base: int = 256) -> None:
        super().__init__(in_features, out_features)
        self.step_factor = min(1.0, base / in_features)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if local_metadata.get("version") == 1 and f"{prefix}weight" in state_dict:
            state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"] * self.step_factor
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def per_stage(value: int | Sequence[int], stages: int, name: str) -> list[int]:
    """Return one number a stage: a single number is repeated, a list must have ``stages`` entries."""
    values = [value] * stages if isinstance(value, int) else list(value)
    if len(values) != stages:
        raise UserError(f"{name}={values} has {len(values)} entries for {stages} widths: give one number or {stages}")
    return values


class ConvGeometry:
    """Kernel, stride and padding of a stack of convolutions, and the map sizes that follow from them.

    Encoders apply it from the image inwards. Decoders apply it backwards, with the output padding that restores each
    size exactly, so a decoder works for every size for which all maps of the encoder have at least one pixel.
    """

    def __init__(
        self, stages: int, kernel_size: int | Sequence[int], stride: int | Sequence[int], padding: int | Sequence[int]
    ) -> None:
        if stages == 0:
            raise UserError("widths=[]: give at least one")
        self.kernels = per_stage(kernel_size, stages, "kernel_size")
        self.strides = per_stage(stride, stages, "stride")
        self.paddings = per_stage(padding, stages, "padding")

    def __len__(self) -> int:
        return len(self.kernels)

    def chain(self, size: int) -> list[int]:
        """Return the sides from the image (``size`` pixels) to the innermost map; stop at the first one below 1."""
        sizes = [size]
        for kernel, stride, padding in zip(self.kernels, self.strides, self.paddings, strict=True):
            sizes.append((sizes[-1] + 2 * padding - kernel) // stride + 1)
            if sizes[-1] < 1:
                break
        return sizes

    def fits(self, size: int) -> bool:
        """Return whether every map of a ``size``-pixel image has at least one pixel."""
        return self.chain(size)[-1] >= 1

    def output_padding(self, stage: int, size: int) -> int:
        """Return the rows that a transposed convolution must add to restore the ``size`` that stage ``stage`` had."""
        kernel, stride, padding = self.kernels[stage], self.strides[stage], self.paddings[stage]
        return (size + 2 * padding - kernel) % stride

    def maps(self, image_shape: Sequence[int], network: str) -> list[tuple[int, int]]:
        """Return height and width of every map of an image ``(C, H, W)``, the image first.

        Raises:
            UserError: the image is too small for the stack; the message lists the sizes that work.
        """
        _, height, width = image_shape
        if not (self.fits(height) and self.fits(width)):
            shrinking = " -> ".join(str(s) for s in self.chain(min(height, width)))
            raise UserError(
                f"{network} cannot process {height}x{width} pixel images: its {len(self)} convolutions shrink a side "
                f"{shrinking}. Sizes that work: {self.sizes_that_work()}; set data.image_size to one of them"
            )
        return list(zip(self.chain(height), self.chain(width), strict=True))

    def sizes_that_work(self) -> str:
        """Return the sides for which this stack works, in words."""
        good = [size for size in range(1, LARGEST_SIZE + 1) if self.fits(size)]
        if not good:
            return f"none up to {LARGEST_SIZE} (fewer stages or smaller kernels are needed)"
        return f"{good[0]} and above"


def flat(shape: Sequence[int]) -> int:
    """Return the number of entries of a tensor of this shape."""
    return math.prod(shape)
