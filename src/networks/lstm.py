"""Recurrent encoder that reads an image row by row."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LSTMEncoder(nn.Module):
    """Rows of an image as a sequence through a bidirectional LSTM; the last state of each direction is kept.

    Any image size works: the sequence is as long as the image is high, a row has ``C * W`` numbers.

    Args:
        image_shape: channels, height and width ``(C, H, W)`` of the images.
        depth: stacked LSTM layers.
        hidden: state size of one direction (Hochreiter & Schmidhuber 1997).
    """

    def __init__(self, image_shape: Sequence[int], depth: int, hidden: int = 64) -> None:
        super().__init__()
        channels, _, width = image_shape
        self.lstm = nn.LSTM(channels * width, hidden, depth, batch_first=True, bidirectional=True)
        self.out_features = 2 * hidden

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` to features ``[B, 2 * hidden]``."""
        rows = x.movedim(1, 2).flatten(2)  # [B, H, C * W]
        _, (state, _) = self.lstm(rows)  # [2 * depth, B, hidden]; the last two are the top layer's directions
        return torch.cat([state[-2], state[-1]], dim=1)
