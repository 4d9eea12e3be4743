"""Data sets that come as arrays: torchvision's, scikit-learn's digits, Larochelle's binarized MNIST."""

import gzip
import hashlib
import socket
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import urlopen

import numpy as np
import torch
from torch import Tensor

from src.data.base import ImageDataModule
from src.data.splits import ImagePool, content_digest
from src.data.store import resize_images
from src.system.console import progress
from src.system.errors import UserError, memory_full, one_line
from src.system.files import remove_unfinished, whole_file
from src.system.locks import turn

DOWNLOADING = ".download.lock"  # in the target folder during a download
STALLED = 60  # seconds without a byte after which a download counts as failed
MIB = 2**20


def array_pool(images: Tensor, labels: Tensor, classes: list[str], published: np.ndarray, size: int) -> ImagePool:
    """Return a pool of uint8 images ``[N, C, H, W]``, resized; digests are of the pixels before resizing."""
    digests = [content_digest(image.tobytes()) for image in images.numpy()]
    return ImagePool(resize_images(images, size), labels, classes, published, digests)


@contextmanager
def _downloading(name: str, root: Path, where_to_get: str) -> Iterator[bool]:
    """Let one process at a time download into ``root``, as :func:`src.system.locks.turn` does.

    Raises:
        UserError: the download failed, or no byte came for a minute.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED)  # torchvision sets none
    try:
        root.mkdir(parents=True, exist_ok=True)
        with turn(root, DOWNLOADING, f"{name}: waiting for another process, which downloads into {root}") as alone:
            yield alone
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name} is not below {root} and could not be downloaded ({one_line(error)}). {where_to_get}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _is_absent(error: Exception) -> bool:
    """Return whether torchvision raised this error because files are missing."""
    return isinstance(error, RuntimeError) and "not found" in str(error)


class DigitsDataModule(ImageDataModule):
    """The 1,797 handwritten 8x8 digits that scikit-learn bundles: real data without a network.

    17 grey levels (Alpaydin & Kaynak 1998, UCI "Optical Recognition of Handwritten Digits").
    """

    def load_pool(self) -> ImagePool:
        """Return the bundled array, scaled from 0..16 to 0..255."""
        # The file that sklearn.datasets.load_digits reads: importing scikit-learn takes longer than training on it.
        (package,) = find_spec("sklearn").submodule_search_locations
        with gzip.open(Path(package) / "datasets" / "data" / "digits.csv.gz", "rt") as file:
            table = np.loadtxt(file, delimiter=",")
        pixels, labels = table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1]
        images = torch.from_numpy((pixels * (255 / 16)).round().astype(np.uint8))
        classes, published = [str(digit) for digit in range(10)], np.full(len(images), "")
        return array_pool(images, torch.from_numpy(labels).long(), classes, published, self.image_size)


class TorchvisionDataModule(ImageDataModule):
    """A torchvision data set with ``train=True|False``, ``.data`` and ``.targets`` (MNIST's family, CIFAR's).

    Args:
        root: folder that holds the data set's own folder.
        dataset: the torchvision class, called with ``root``, ``train`` and ``download``; it downloads from its
            public mirror, checksum included, when the files are missing and ``download`` is true.
        download: whether it may.
        where_to_get: which files to put where when there is no network.
        checksum: SHA-256 of the published pixels and labels, see :meth:`checksum_of`; None skips the check.
        **common: as for :class:`ImageDataModule`.
    """

    def __init__(
        self,
        root: str,
        dataset: Callable[..., Any],
        download: bool = True,
        where_to_get: str = "",
        checksum: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.root = root
        self.dataset = dataset
        self.download = download
        self.where_to_get = where_to_get
        self.checksum = checksum

    def load_pool(self) -> ImagePool:
        """Return both published splits; download missing files.

        Raises:
            UserError: the files are missing, damaged, or those of another data set.
        """
        train, test = parts = [self._read(train=train) for train in (True, False)]
        for part in parts:
            if len(part.data) != len(part.targets):
                raise self._damaged(f"{len(part.data)} images and {len(part.targets)} labels")
        if self.checksum is not None and self.checksum_of(parts) != self.checksum:
            raise self._damaged("they are not the published ones; data.checksum=null takes them as they are")
        images = torch.cat([self._images(part) for part in (train, test)])
        labels = torch.cat([torch.as_tensor(part.targets) for part in (train, test)]).long()
        published = np.repeat(["train", "test"], [len(train), len(test)])
        return array_pool(images, labels, list(train.classes), published, self.image_size)

    def _read(self, *, train: bool) -> Any:
        try:
            return self.dataset(root=self.root, train=train, download=False)
        except Exception as error:
            if memory_full(error):
                raise
            if not self.download:
                raise self._unusable(error) from error
        with _downloading(self.name, Path(self.root).expanduser(), self.where_to_get):
            try:  # another process may just have finished the download: half a file looked damaged
                return self.dataset(root=self.root, train=train, download=False)
            except Exception as error:
                if not _is_absent(error):
                    raise self._unusable(error) from error
            return self.dataset(root=self.root, train=train, download=True)

    def _unusable(self, error: Exception) -> UserError:
        """Return the error to raise where reading the files failed."""
        if _is_absent(error):
            return UserError(f"{self.name} is not below {self.root} and data.download is false. {self.where_to_get}")
        return self._damaged(f"damaged: {one_line(error)}")

    def _damaged(self, what: str) -> UserError:
        again = ": remove them, and they are downloaded again" if self.download else ""
        files = f"the files below {self.root} cannot be used ({what})"
        return UserError(f"{self.name}: {files}{again}. {self.where_to_get}")

    @staticmethod
    def checksum_of(parts: Sequence[Any]) -> str:
        """Return the SHA-256 of the pixels of each split, each followed by its labels as bytes."""
        digest = hashlib.sha256()
        for part in parts:
            digest.update(np.ascontiguousarray(part.data))
            digest.update(np.asarray(part.targets, dtype=np.uint8))
        return digest.hexdigest()

    def _images(self, part: Any) -> Tensor:
        """Reshape ``[N, H, W]`` or ``[N, H, W, C]`` to uint8 ``[N, C, H, W]``."""
        data = torch.as_tensor(part.data)
        return (data.unsqueeze(1) if data.ndim == 3 else data.movedim(-1, 1)).contiguous()


class BinarizedMNISTDataModule(ImageDataModule):
    """MNIST with fixed binary pixels and its own validation split (Salakhutdinov & Murray 2008; Larochelle).

    Text files of 784 numbers a line, ``binarized_mnist_{train,valid,test}.amat``, plain or gzipped; their unpacked
    content is checked against the published one.

    Args:
        root: folder that holds ``binarized_mnist/``.
        download: fetch missing files from their author's page.
        **common: as for :class:`ImageDataModule`.
    """

    binary_source = True
    SIDE = 28
    URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
    SHA256: ClassVar = {  # of the unpacked text
        "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
        "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
        "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    }

    def __init__(self, root: str, download: bool = True, **common: Any) -> None:
        super().__init__(**common)
        self.folder = Path(root).expanduser() / "binarized_mnist"
        self.download = download

    @property
    def resized_binary(self) -> bool:
        """Whether resizing has turned the binary pixels grey."""
        return self.image_size != self.SIDE

    def load_pool(self) -> ImagePool:
        """Return the three published splits."""
        parts = {"train": self._read("train"), "val": self._read("valid"), "test": self._read("test")}
        images = torch.cat(list(parts.values()))
        published = np.repeat(list(parts), [len(part) for part in parts.values()])
        return array_pool(images, torch.full((len(images),), -1), [], published, self.image_size)

    def _read(self, part: str) -> Tensor:
        """Read one file as uint8 ``[N, 1, 28, 28]`` of 0 and 255."""
        path = self.folder / f"binarized_mnist_{part}.amat"
        text = self._found(path)
        if text is None:
            text = self._fetch(path, part)
        if not self._is_published(text, part):
            raise UserError(f"{path.name} in {self.folder} is not the published file: fetch it again from {self.URL}")
        digits = np.frombuffer(text, dtype=np.uint8)
        digits = digits[(digits == ord("0")) | (digits == ord("1"))] - ord("0")
        return torch.from_numpy(digits.reshape(-1, 1, self.SIDE, self.SIDE) * np.uint8(255))

    def _found(self, path: Path) -> bytes | None:
        """Return the text of an existing file, plain or gzipped; None if neither exists."""
        packed = path.with_suffix(".amat.gz")
        if path.exists():
            return path.read_bytes()
        if not packed.exists():
            return None
        try:
            return gzip.decompress(packed.read_bytes())
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{packed} is damaged ({error}): fetch it again from {self.URL}") from error

    def _is_published(self, text: bytes, part: str) -> bool:
        return hashlib.sha256(text).hexdigest() == self.SHA256[part]

    def _fetch(self, path: Path, part: str) -> bytes:
        """Download one file completely, unless another process has just done so."""
        advice = f"Put binarized_mnist_{{train,valid,test}}.amat (or .amat.gz) from {self.URL} into {self.folder}"
        if not self.download:
            raise UserError(f"{self.name}: there is no {path} and data.download is false. {advice}")
        with _downloading(self.name, self.folder.parent, advice) as alone:
            text = self._found(path)
            if text is not None:
                return text
            if alone:
                remove_unfinished(self.folder)
            url = f"{self.URL}/{path.name}"
            with whole_file(path) as file:
                with urlopen(url) as page, file.open("wb") as written:
                    blocks = iter(lambda: page.read(MIB), b"")
                    for block in progress(blocks, f"{path.name}, MiB", -(-(page.length or 0) // MIB) or None):
                        written.write(block)
                text = file.read_bytes()
                if not self._is_published(text, part):
                    raise UserError(f"{self.name}: what {url} sends is not the published file. {advice}")
        return text
