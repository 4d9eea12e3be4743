"""Recurrent encoder that reads an image row by row."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LSTMEncoder(nn.Module):
    """Rows of an image as a sequence through a bidirectional LSTM; the last state of each direction is kept.

    Any image size works: the sequence is as long as the image is high, a row has ``C * W`` numbers. It is computed in
    float32 under any precision: states this small gain nothing from 16 bits.

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
        # Autocast runs it in float16 on GPUs also where bfloat16 is asked for, so without a loss scaler, and not at all
        # on processors that do not multiply bfloat16 (the former: https://github.com/pytorch/pytorch/pull/42385).
        with torch.autocast(x.device.type, enabled=False):
            _, (state, _) = self.lstm(rows.float())  # [2 * depth, B, hidden]; the top layer's directions come last
        return torch.cat([state[-2], state[-1]], dim=1)
