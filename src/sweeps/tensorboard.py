"""What TensorBoard's HParams tab shows of a sweep."""

import time
from collections.abc import Iterable
from pathlib import Path

SUFFIX = ".sweep"


def name_columns(folder: Path, keys: Iterable[str], metrics: Iterable[str]) -> None:
    """Have the tab on ``folder`` show these hyperparameters and metrics; the points record some thirty more.

    Args:
        folder: the sweep's.
        keys: swept keys.
        metrics: tags of scalars.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams import summary_v2 as hparams
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for old in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        old.unlink()
    columns = hparams.hparams_config_pb(
        hparams=[hparams.HParam(key) for key in keys], metrics=[hparams.Metric(tag) for tag in metrics]
    )
    writer = EventFileWriter(str(folder), filename_suffix=SUFFIX)
    writer.add_event(Event(summary=columns, wall_time=time.time()))
    writer.close()
