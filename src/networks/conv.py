"""A convolutional encoder and a transposed-convolutional decoder.

Both are described by the widths of their maps from the image inwards, so a decoder that mirrors an encoder
has the same lists. ``depth`` counts the convolutions of a stage: one that changes size and channels, and
``depth - 1`` residual ones at the stage's inner size.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from src.networks.blocks import (
    ConvGeometry,
    DrawingLayer,
    Norm,
    ResidualConv,
    WideLinear,
    flat,
    norm_and_activation,
    taken_by,
)


class ConvEncoder(nn.Module):
    """Map images to a feature vector.

    Args:
        image_shape: channels, height and width ``(C, H, W)`` of the images.
        depth: convolutions a stage.
        widths: channels of each stage's maps, from the image inwards.
        kernel_size, stride, padding: of each stage's first convolution: one number, or one a stage.
        norm: batch norm ``before`` or ``after`` the nonlinearity, or ``none``.
        act: name of the nonlinearity.
        hidden: size of a fully connected layer behind the flattened maps, or null for none.
        hidden_norm: batch norm placement of that layer.

    Raises:
        UserError: the image is too small for the stack; the message names the sizes that work.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        depth: int,
        widths: Sequence[int],
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        padding: int | Sequence[int] = 1,
        norm: Norm = "before",
        act: str = "leaky_relu",
        hidden: int | None = None,
        hidden_norm: Norm = "none",
    ) -> None:
        super().__init__()
        geometry = ConvGeometry(len(widths), kernel_size, stride, padding)
        maps = geometry.maps(image_shape, "this convolutional encoder")
        channels = [image_shape[0], *widths]
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            layers += [
                nn.Conv2d(
                    channels[i],
                    taken_by(act, width),
                    geometry.kernels[i],
                    geometry.strides[i],
                    geometry.paddings[i],
                ),
                *norm_and_activation(width, norm, act),
                *(ResidualConv(width, norm, act) for _ in range(depth - 1)),
            ]
        layers.append(nn.Flatten())
        self.out_features = flat((widths[-1], *maps[-1]))
        if hidden is not None:
            layers += [
                WideLinear(self.out_features, taken_by(act, hidden)),
                *norm_and_activation(hidden, hidden_norm, act, spatial=False),
            ]
            self.out_features = hidden
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, C, H, W]`` in [0, 1] to features ``[B, out_features]``."""
        return self.layers(x)


class ConvDecoder(nn.Module):
    """Map latent codes to the raw parameters of the likelihood of every pixel.

    It mirrors :class:`ConvEncoder`: a fully connected layer fills the innermost map, then each stage enlarges it by a
    transposed convolution. The last one outputs the parameters without norm or nonlinearity, which would make some
    pixel values unreachable.

    Args:
        latent_dim: entries of a latent code.
        image_shape: the maps that the likelihood needs, then height and width of the images.
        depth: convolutions a stage.
        widths: channels of the maps from the image inwards; the last is the innermost map's.
        kernel_size, stride, padding: of each stage, from the image inwards: one number, or one a stage.
        norm, act: as in :class:`ConvEncoder`.
        dense_norm: batch norm placement of the fully connected layer.
        dropout: probability of dropping an entry of the fully connected layer's output.

    Raises:
        UserError: the maps cannot give images of this size; the message names the sizes that work.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: Sequence[int],
        depth: int,
        widths: Sequence[int],
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        padding: int | Sequence[int] = 1,
        norm: Norm = "before",
        act: str = "leaky_relu",
        dense_norm: Norm = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        geometry = ConvGeometry(len(widths), kernel_size, stride, padding)
        maps = geometry.maps(image_shape, "this convolutional decoder")
        innermost = (widths[-1], *maps[-1])
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, taken_by(act, flat(innermost))),
            *norm_and_activation(flat(innermost), dense_norm, act, spatial=False),
            *([nn.Dropout(dropout)] if dropout > 0 else []),
            nn.Unflatten(1, innermost),
        ]
        channels = [image_shape[0], *widths[:-1]]
        for i in reversed(range(len(widths))):
            layers += [ResidualConv(widths[i], norm, act) for _ in range(depth - 1)]
            layer = DrawingLayer if i == 0 else nn.ConvTranspose2d
            layers.append(
                layer(
                    widths[i],
                    channels[i] if i == 0 else taken_by(act, channels[i]),
                    geometry.kernels[i],
                    geometry.strides[i],
                    geometry.paddings[i],
                    output_padding=tuple(geometry.output_padding(i, side) for side in maps[i]),
                )
            )
            if i > 0:
                layers += norm_and_activation(channels[i], norm, act)
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Map latent codes ``[B, latent_dim]`` to raw likelihood parameters ``[B, C, H, W]``."""
        return self.layers(z)
