"""Choose the columns of TensorBoard's HParams tab for a sweep."""

import time
from collections.abc import Iterable
from pathlib import Path

from src.system.files import readable

SUFFIX = ".sweep"


def name_columns(folder: Path, keys: Iterable[str], metrics: Iterable[str]) -> None:
    """Make the tab on ``folder`` show these hyperparameters and metrics only; points record some thirty more.

    Args:
        folder: folder of the sweep.
        keys: swept keys as typed, ``+`` included.
        metrics: tags of scalars.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams import summary_v2 as hparams
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for old in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        old.unlink()
    names = [hparams.HParam(readable(key.lstrip("+"))) for key in keys]
    columns = hparams.hparams_config_pb(hparams=names, metrics=[hparams.Metric(tag) for tag in metrics])
    writer = EventFileWriter(str(folder), filename_suffix=SUFFIX)
    writer.add_event(Event(summary=columns, wall_time=time.time()))
    writer.close()
