"""Less of the libraries' noise on the terminal."""

import logging
import warnings

QUIET = (
    ".*LeafSpec.*",  # a deprecation inside Lightning
    ".*does not have many workers.*",  # batches are gathered from one tensor: workers would only copy
    ".*exists and is not empty.*",  # a resumed run's checkpoints folder
    ".*is smaller than the logging interval.*",  # epochs are logged whatever their length
    ".*not supported by the model summary.*",  # it only estimates megabytes
)


def hush_libraries() -> None:
    """Drop adverts and warnings that say nothing about the run.

    Lightning advertises its makers' products through its rank-zero loggers.
    """
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
