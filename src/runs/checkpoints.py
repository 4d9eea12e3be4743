"""Write checkpoints atomically, and read them without unpickling code after checking that they are intact."""

import contextlib
import errno
import hashlib
import os
import traceback
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from src.data.base import ImageDataModule
from src.models.base import BaseVAE
from src.system.errors import UserError
from src.system.files import whole_file

RESUMED = (
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "callbacks",
    "epoch",
    "global_step",
    "pytorch-lightning_version",
)
# Entries of an optimizer's state that have the shape of their weight.
MIRRORS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "ax"}
ADVICE = "Use the overrides that the run was trained with"


class WholeCheckpoints(TorchCheckpointIO):
    """Write a checkpoint next to the file that it replaces, and replace that only when it is complete.

    Lightning writes to ``$TMPDIR`` and copies over the old file (https://github.com/Lightning-AI/pytorch-lightning/issues/21253),
    which is still done if the path is a URL. A checkpoint with the content of the one before, such as ``last`` after a
    new ``best``, becomes a hard link to it; that is safe because no file is ever modified in place.

    Args:
        before_first: called once, before the first checkpoint is written.
    """

    def __init__(self, before_first: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._before_first = before_first
        self._latest: tuple[Path, int, Any] | None = None  # path, inode and version of the one before

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full, or the file cannot be written; the error names the file.
        """
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        if self._before_first is not None:
            self._before_first()
            self._before_first = None
        version, path = _version_of(checkpoint), Path(path)
        try:
            if not self._link_to_latest(path, version):
                with whole_file(path) as temporary, temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                self._latest = (path, path.stat().st_ino, version)
        except (OSError, RuntimeError) as error:  # torch raises its own error for the system's
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise OSError(cause.errno or errno.EIO, cause.strerror, str(path)) from error

    def _link_to_latest(self, path: Path, version: Any) -> bool:
        """Link ``path`` to the checkpoint before if that has the same content; return whether that was done."""
        if self._latest is None or self._latest[2] != version:
            return False
        twin, inode, _ = self._latest
        with contextlib.suppress(OSError):  # the file is gone, or the file system has no links
            if twin != path and twin.stat().st_ino == inode:
                with whole_file(path) as temporary:
                    temporary.unlink()
                    os.link(twin, temporary)
                return True
        return False


def _version_of(tree: Any) -> Any:
    """Return a version of a checkpoint's content, which is equal for equal content, without reading the weights.

    Writing to a tensor increases its version. Fused optimizers do not, but the version holds the number of steps too.
    """
    if isinstance(tree, Tensor):
        return tree.data_ptr(), tree._version, tree.shape, tree.dtype
    if isinstance(tree, Mapping):
        return {key: _version_of(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_version_of(value) for value in tree]
    return tree


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without unpickling code.

    Raises:
        UserError: the file is damaged, or holds more than tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as parts:  # torch does not verify checksums
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise ValueError("it is compressed")  # torch never compresses; a small file could expand to fill memory
            if (damaged := parts.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} in it is another")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for name, weights in checkpoint["state_dict"].items():
            if not isinstance(name, str) or not isinstance(weights, Tensor) or weights.layout != torch.strided:
                raise TypeError("its state_dict holds more than named arrays")
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, zip errors
        reason = str(error).split("\n")[0]
        raise UserError(f"cannot read the checkpoint {path} ({reason}): it is damaged or from elsewhere") from error
    return checkpoint


def read_weights(path: Path, model: BaseVAE, advice: str = ADVICE) -> dict[str, Tensor]:
    """Return the weights of a checkpoint after checking that they fit the model.

    Raises:
        UserError: the file is damaged, or its weights are another model's; the message ends with ``advice``.
    """
    return weights_of(path, read_checkpoint(path), model, advice)


def weights_of(path: Path, checkpoint: Mapping[str, Any], model: BaseVAE, advice: str = ADVICE) -> dict[str, Tensor]:
    """Do what :func:`read_weights` does, for a checkpoint that was read from ``path``."""
    weights, ours = checkpoint["state_dict"], model.state_dict()
    for name in sorted(weights.keys() | ours.keys()):
        file, here = (f"{list(w[name].shape)} {w[name].dtype}" if name in w else "absent" for w in (weights, ours))
        if file != here:
            raise UserError(
                f"the checkpoint {path} does not fit this model: {name} is {file} in the file and {here} here. {advice}"
            )
    return weights


def check_resumable(path: Path, checkpoint: Mapping[str, Any], model: BaseVAE) -> None:
    """Check that training can be resumed from a checkpoint: it is complete and fits the model.

    Raises:
        UserError: something is missing or does not fit.
    """
    if lacking := [part for part in RESUMED if part not in checkpoint]:
        raise UserError(
            f"{path} has no {', '.join(lacking)}: nothing can be resumed from it; ckpt_path={path} with another "
            "hydra.run.dir begins a new run with its weights"
        )
    weights_of(path, checkpoint, model)
    states = checkpoint["optimizer_states"]
    if not isinstance(states, list) or not all(map(_is_state, states)):
        raise UserError(f"the optimizer's state in {path} is none: it is damaged or from elsewhere")
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [[names[p] for p in group["params"]] for group in model.recipe.optimizer(model).param_groups]
    for state in states:
        file, here = [len(group["params"]) for group in state["param_groups"]], [len(group) for group in groups]
        if file != here:
            raise UserError(
                f"the optimizer's state in {path} is of another kind or another version of the code (weights in groups "
                f"of {file}, here {here}): ckpt_path={path} with another hydra.run.dir begins a new run with its "
                "weights"
            )
        for number, name in enumerate(name for group in groups for name in group):
            weight, values = model.get_parameter(name), state["state"].get(number)
            for what in MIRRORS & values.keys() if isinstance(values, dict) else ():
                value = values[what]
                if isinstance(value, Tensor) and value.shape != weight.shape:
                    raise UserError(
                        f"the optimizer's state in {path} is another model's: {what} of {name} is {list(value.shape)} "
                        f"there and {list(weight.shape)} here"
                    )


def _is_state(state: Any) -> bool:
    """Return whether ``state`` has the form that optimizers save."""
    if not (isinstance(state, dict) and isinstance(state.get("state"), dict)):
        return False
    groups = state.get("param_groups")
    return isinstance(groups, list) and all(isinstance(g, dict) and isinstance(g.get("params"), list) for g in groups)


def first_readable(paths: Sequence[Path]) -> tuple[Path, dict[str, Any], list[str]]:
    """Return the first checkpoint that can be read, its content, and the errors of those before it.

    Raises:
        UserError: none can be read; the message is that of the first.
    """
    errors = []
    for path in paths:
        try:
            return path, read_checkpoint(path), [str(error) for error in errors]
        except UserError as error:
            errors.append(error)
    raise errors[0]


def fingerprint_in(checkpoint: Mapping[str, Any], datamodule: ImageDataModule) -> str | None:
    """Return the fingerprint of the images that a checkpoint was trained on; None if it has none."""
    state = checkpoint.get(type(datamodule).__qualname__)
    return state.get("fingerprint") if isinstance(state, dict) else None


def restoring(error: BaseException) -> bool:
    """Return whether an exception was raised while Lightning restored the state of a checkpoint."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(
        Path(frame.filename).name == "checkpoint_connector.py" and frame.name.startswith(("restore", "_restore"))
        for frame in frames
    )


def hash_of(path: Path) -> str:
    """Return the first 16 hex digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
