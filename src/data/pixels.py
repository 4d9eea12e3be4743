"""What the values of pixels are."""

from enum import StrEnum


class Pixels(StrEnum):
    """What the pixel values of a data set are; decides which likelihoods are honest about them."""

    BINARY = "binary"  # 0 or 1
    GREY = "grey"  # one of 256 levels, as read from the file, divided by 255
    DEQUANTIZED = "dequantized"  # (level + uniform noise) / 256: a sample of a density on [0, 1]
