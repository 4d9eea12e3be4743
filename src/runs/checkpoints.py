"""Checkpoints: written whole or not at all, and read without unpickling code once nothing in them is damaged."""

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
# What optimizers keep of each weight in its own shape.
MIRRORS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "ax"}
ADVICE = "Use the overrides that the run was trained with"


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, each written beside the one that it replaces, which stays until it is whole.

    Lightning writes them in the folder of temporary files, and then copies them over the old ones; it still does where
    the path is a URL. A checkpoint that holds what the one before it holds, as ``last`` does after a new ``best``, is
    another name of that file: none is ever written into.

    Args:
        before_first: called once, before the first is written.
    """

    def __init__(self, before_first: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._before_first = before_first
        self._latest: tuple[Path, int, Any] | None = None  # the one before: its path, its inode, marks of its content

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one.

        Raises:
            OSError: the disk is full, or the file cannot be written; it names the file.
        """
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        if self._before_first is not None:
            self._before_first()
            self._before_first = None
        marks, path = _marks(checkpoint), Path(path)
        try:
            if not self._linked(path, marks):
                with whole_file(path) as temporary, temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                self._latest = (path, path.stat().st_ino, marks)
        except (OSError, RuntimeError) as error:  # torch turns the system's error into one of its own
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise OSError(cause.errno or errno.EIO, cause.strerror, str(path)) from error

    def _linked(self, path: Path, marks: Any) -> bool:
        """Whether the checkpoint before this one holds the same and could be given its name too."""
        if self._latest is None or self._latest[2] != marks:
            return False
        twin, inode, _ = self._latest
        with contextlib.suppress(OSError):  # it is gone, or the file system has no links
            if twin != path and twin.stat().st_ino == inode:
                with whole_file(path) as temporary:
                    temporary.unlink()
                    os.link(twin, temporary)
                return True
        return False


def _marks(tree: Any) -> Any:
    """Of what a checkpoint holds: equal where that is, told without looking at the weights.

    Writing into a tensor gives it a new version. Fused optimizers do not, but the number of steps is among the marks.
    """
    if isinstance(tree, Tensor):
        return tree.data_ptr(), tree._version, tree.shape, tree.dtype
    if isinstance(tree, Mapping):
        return {key: _marks(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_marks(value) for value in tree]
    return tree


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, read without unpickling code.

    Raises:
        UserError: it is damaged, or holds more than tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as parts:  # torch itself does not look at the checksums
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise ValueError("it is compressed")  # torch writes none, and a small one may hold very much
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
    """The weights of a checkpoint, once they are seen to fit the model.

    Raises:
        UserError: it is damaged, or its weights are another model's; the message ends with ``advice``.
    """
    return weights_of(path, read_checkpoint(path), model, advice)


def weights_of(path: Path, checkpoint: Mapping[str, Any], model: BaseVAE, advice: str = ADVICE) -> dict[str, Tensor]:
    """As :func:`read_weights`, of a checkpoint that has been read from ``path``."""
    weights, ours = checkpoint["state_dict"], model.state_dict()
    for name in sorted(weights.keys() | ours.keys()):
        then, now = (f"{list(w[name].shape)} {w[name].dtype}" if name in w else "absent" for w in (weights, ours))
        if then != now:
            raise UserError(
                f"the checkpoint {path} does not fit this model: {name} is {then} in the file and {now} here. {advice}"
            )
    return weights


def check_resumable(path: Path, checkpoint: Mapping[str, Any], model: BaseVAE) -> None:
    """See that training can go on from a checkpoint: that it has all that takes, and for this very model.

    Raises:
        UserError: it has not.
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
        then, now = ([len(group) for group in of] for of in ([g["params"] for g in state["param_groups"]], groups))
        if then != now:
            raise UserError(
                f"the optimizer's state in {path} is of another kind or another version of the code (weights in groups "
                f"of {then}, here {now}): ckpt_path={path} with another hydra.run.dir begins a new run with its weights"
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
    """Whether it looks like what an optimizer saves."""
    if not (isinstance(state, dict) and isinstance(state.get("state"), dict)):
        return False
    groups = state.get("param_groups")
    return isinstance(groups, list) and all(isinstance(g, dict) and isinstance(g.get("params"), list) for g in groups)


def first_readable(paths: Sequence[Path]) -> tuple[Path, dict[str, Any], list[str]]:
    """The first of several checkpoints that can be read, what it holds, and what is wrong with those before it.

    Raises:
        UserError: none can be; the message is that of the first.
    """
    refusals = []
    for path in paths:
        try:
            return path, read_checkpoint(path), [str(refusal) for refusal in refusals]
        except UserError as error:
            refusals.append(error)
    raise refusals[0]


def fingerprint_in(checkpoint: Mapping[str, Any], datamodule: ImageDataModule) -> str | None:
    """The fingerprint of the images that a checkpoint was trained on; None where it has none."""
    state = checkpoint.get(type(datamodule).__qualname__)
    return state.get("fingerprint") if isinstance(state, dict) else None


def restoring(error: BaseException) -> bool:
    """Whether an exception came up while Lightning took up the state in a checkpoint."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(
        Path(frame.filename).name == "checkpoint_connector.py" and frame.name.startswith(("restore", "_restore"))
        for frame in frames
    )


def hash_of(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
