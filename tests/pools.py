"""A command that reads a data set and says what it holds: ``python -m tests.pools [override ...]``.

``MIRROR`` is where it downloads from, ``SUMS`` (JSON) the checksums of what is there by file name; ``SLOW`` the seconds
that decoding a file takes longer; with ``NO_LOCKS`` the file system knows none.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import sys
import time

import torchvision

from src.data import decoding
from src.data.arrays import BinarizedMNISTDataModule
from tests.helpers import data

MIRROR = os.environ.get("MIRROR", "http://127.0.0.1:9")
SUMS = json.loads(os.environ.get("SUMS", "{}"))


class MNIST(torchvision.datasets.MNIST):
    """From another place."""

    mirrors = (f"{MIRROR}/",)
    resources = tuple((name, SUMS.get(name)) for name, _ in torchvision.datasets.MNIST.resources)


class BinarizedMNIST(BinarizedMNISTDataModule):
    """From another place."""

    URL = MIRROR
    SHA256 = {part: SUMS.get(f"binarized_mnist_{part}.amat") for part in BinarizedMNISTDataModule.SHA256}  # noqa: RUF012


def main() -> None:
    """Print images, a digest of them, and how many were decoded, in one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    decoded, decode = [], decoding.decode

    def slowly(path: str, *rest: int) -> decoding.Decoded:
        time.sleep(float(os.environ.get("SLOW", "0")))
        decoded.append(path)
        return decode(path, *rest)

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    decoding.decode = slowly
    if "NO_LOCKS" in os.environ:
        fcntl.flock = no_locks
    pool = data(*sys.argv[1:]).pool
    digest = hashlib.sha256(pool.images.numpy().tobytes() + b"".join(pool.digests)).hexdigest()
    print(json.dumps({"images": len(pool), "digest": digest, "decoded": len(decoded)}))


if __name__ == "__main__":
    main()
