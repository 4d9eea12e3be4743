"""Kinds of pixel values."""

from enum import StrEnum


class Pixels(StrEnum):
    """The kind of a data set's pixel values; it decides which likelihoods are proper densities of them."""

    BINARY = "binary"  # 0 or 1
    GREY = "grey"  # one of 256 levels, as read from the file, divided by 255
    DEQUANTIZED = "dequantized"  # (level + uniform noise) / 256: a sample of a density on [0, 1]
