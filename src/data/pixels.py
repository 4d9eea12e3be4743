"""Kinds of values that a model sees of an image."""

from enum import StrEnum


class Pixels(StrEnum):
    """The kind of a data set's pixel values; it decides which likelihoods are proper densities of them."""

    BINARY = "binary"  # 0 or 1
    GREY = "grey"  # one of 256 levels, as read from the file, divided by 255
    DEQUANTIZED = "dequantized"  # (level + uniform noise) / 256: a sample of a density on [0, 1]
    FEATURES = "features"  # no pixels, but what was computed of them: see contrast_cells in base.py
