"""A callback that checks a training from inside, as only a GPU can show it."""

from typing import Any

import torch
from lightning import Callback, Trainer

from src.models.base import BaseVAE

NO_WAIT = range(2, 19)  # steps that must not wait for the GPU; the 20th logs, and therefore waits


class Spy(Callback):
    """Check devices and the optimizer state's layout, and that no ordinary step waits for the GPU."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: BaseVAE, batch: Any, batch_idx: int) -> None:
        """Check that batch and weights are on one device, and on a GPU the data set too."""
        device = trainer.strategy.root_device.type
        found = {batch.x.device.type, pl_module.device.type}
        assert found == {device}, f"tensors are on {found}, not only on {device}"
        assert device == "cpu" or trainer.datamodule._on_gpu is not None, "the images are not on the GPU"
        self._set_sync_mode("error" if trainer.global_step in NO_WAIT else "default")

    def on_train_batch_end(self, trainer: Trainer, pl_module: BaseVAE, *args: Any) -> None:
        """Check that the optimizer's state has the device and the layout of its weight."""
        for parameter, state in trainer.optimizers[0].state.items():
            moment = state["exp_avg"]
            assert moment.device == parameter.device, "the optimizer's state is on another device"
            assert 1 in parameter.shape or moment.stride() == parameter.stride(), (
                "the optimizer's state has another layout"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """Allow waiting for the GPU."""
        self._set_sync_mode("default")

    def _set_sync_mode(self, mode: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode(mode)
