"""A callback that looks at a training from inside, as only a GPU can show it."""

from typing import Any

import torch
from lightning import Callback, Trainer

from src.models.base import BaseVAE

NO_WAIT = range(2, 19)  # steps in which nothing may wait for the GPU; the 20th is one at which figures are read


class Spy(Callback):
    """Sees where things are, how the optimizer's state lies, and that no ordinary step waits for the GPU."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: BaseVAE, batch: Any, batch_idx: int) -> None:
        """The batch, the weights and the sums are on one device, and on a GPU the data set too."""
        device = trainer.strategy.root_device.type
        found = {batch.x.device.type, pl_module.device.type, pl_module.means["fit"].sums.device.type}
        assert found == {device}, f"on {found}, not on {device} alone"
        assert device == "cpu" or trainer.datamodule._on_gpu is not None, "the images are not on the GPU"
        self._on_waiting("error" if trainer.global_step in NO_WAIT else "default")

    def on_train_batch_end(self, trainer: Trainer, pl_module: BaseVAE, *args: Any) -> None:
        """The state lies where and as its weight does."""
        for parameter, state in trainer.optimizers[0].state.items():
            moment = state["exp_avg"]
            assert moment.device == parameter.device, "the optimizer's state is elsewhere"
            assert 1 in parameter.shape or moment.stride() == parameter.stride(), "the state lies otherwise"

    def on_validation_start(self, trainer: Trainer, pl_module: BaseVAE) -> None:
        """It may wait."""
        self._on_waiting("default")

    def _on_waiting(self, mode: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode(mode)
