"""Counts the pages that a training step's memory faults in again: ``python -m tests.faults keep|default``."""

import resource
import sys

import torch

from src.system.machine import keep_pages


def work() -> None:
    for _ in range(20):
        torch.ones(2**24)  # 64 MiB


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        keep_pages()
    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
