"""What lies in a run's folder, by name."""

METRICS = "metrics.json"
BEFORE = "metrics.before.json"  # of an earlier end of a run that goes on
LOG = "train.log"
OUTPUT = "output.log"  # what a sweep's point has printed
POINT = "point.json"  # how a sweep's point stands
LOCK = ".lock"
PLAN = "sweep.json"  # in a sweep's folder: what was asked for
METRICS_LOCK = ".metrics.lock"
# All that commands write there, or remove.
OURS = (
    *(".hydra", "checkpoints", "embedding", "figures", "tensorboard"),
    *(METRICS, BEFORE, LOG, OUTPUT, POINT, LOCK, METRICS_LOCK),
)
