"""Imported first into the warm process of the tests: counts how often a GPU is looked for there."""

import os

import torch

COUNT = torch._C._cuda_getDeviceCount if hasattr(torch._C, "_cuda_getDeviceCount") else lambda: 0
LOOKED: list[int] = []  # numbers of the processes that did


def _counted() -> int:
    LOOKED.append(os.getpid())
    return COUNT()


torch._C._cuda_getDeviceCount = _counted
