"""Labels of the images that are judged. Nothing else of detection reads them, and no score depends on them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from src.data.base import ImageDataModule


class Truth(NamedTuple):
    """What is known of N judged images."""

    known: np.ndarray  # bool [N], whether the class is known
    abnormal: np.ndarray  # bool [N]
    kind: np.ndarray  # [N], what an abnormal image is, by its file name or its class; "" for other images
    name: list[str]  # [N], of the class


def truth(datamodule: ImageDataModule, index: Tensor, normal: Sequence[int] | None, kinds: str | None) -> Truth:
    """Return the labels of images of the pool.

    Args:
        datamodule: the data set.
        index: which images.
        normal: numbers of the normal classes.
        kinds: a pattern with one group, which names the kind of an abnormal image in its file name.
    """
    pool = datamodule.pool
    labels = pool.labels[index].numpy()
    known = labels >= 0
    abnormal = known & ~np.isin(labels, [] if normal is None else normal) & (normal is not None)
    classes = [pool.classes[label] if label >= 0 else "" for label in labels]
    kind = classes
    if kinds is not None and pool.names is not None:
        found = [re.search(kinds, pool.names[i]) for i in index.tolist()]
        kind = [match[1] if match else name for match, name in zip(found, classes, strict=True)]
    return Truth(known, abnormal, np.where(abnormal, kind, ""), classes)
