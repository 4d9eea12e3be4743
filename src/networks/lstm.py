"""A recurrent encoder that reads an image row by row."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LSTMEncoder(nn.Module):
    """Read the rows of an image as a sequence with a bidirectional LSTM and keep the last state of each direction.

    Any image size works: the sequence has H steps of ``C * W`` numbers. It is computed in float32 under any precision,
    as states this small gain nothing from 16 bits.

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
        """Map images ``[B, C, H, W]`` to features ``[B, 2 * hidden]``."""
        rows = x.movedim(1, 2).flatten(2)  # [B, H, C * W]
        # On GPUs autocast runs cuDNN's LSTM in float16 even if bfloat16 is asked for, and so without a loss scaler
        # (https://github.com/pytorch/pytorch/pull/42385); on processors without bfloat16 instructions it fails.
        with torch.autocast(x.device.type, enabled=False):
            _, (state, _) = self.lstm(rows.float())  # [2 * depth, B, hidden]; the top layer's directions come last
        return torch.cat([state[-2], state[-1]], dim=1)
