"""Say which settings may change when a run is resumed."""

import re
from collections.abc import Mapping
from typing import Any

# Settings of how long, where and on which machine a run trains; all others define the run.
FREE_TO_CHANGE = re.compile(
    r"(ckpt_path|compile|compare_by|run_dir|tags|test|callbacks(?!\.checkpoint\.monitor$)|logger"
    r"|schedule\.factory\.mode|data\.(root|cache_dir|where_to_get|download|checksum|published)"
    r"|trainer\.(max_epochs|max_steps|accelerator|devices|num_nodes|strategy|log_every_n_steps|limit_test_batches|default_root_dir))\b"
)


def other_setting(saved: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """Return the first key that differs and may not; None if the run may be resumed."""
    keys = sorted(saved.keys() | given.keys())
    return next((k for k in keys if saved.get(k) != given.get(k) and not FREE_TO_CHANGE.match(k)), None)
