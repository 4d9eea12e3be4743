"""The names of the files and folders in a run's folder."""

METRICS = "metrics.json"
BEFORE = "metrics.before.json"  # from before a finished run was resumed
LOG = "train.log"
OUTPUT = "output.log"  # what a point of a sweep has printed
POINT = "point.json"  # the status of a point of a sweep
LOCK = ".lock"
PLAN = "sweep.json"  # in a sweep's folder: its command, what is swept and what is fixed
METRICS_LOCK = ".metrics.lock"
# Everything that commands write there or remove.
RUN_CONTENTS = (
    *(".hydra", "checkpoints", "embedding", "figures", "tensorboard"),
    *(METRICS, BEFORE, LOG, OUTPUT, POINT, LOCK, METRICS_LOCK),
)
