"""What may change when a run is taken up again."""

import re
from collections.abc import Mapping
from typing import Any

# How long, where and on what it trains, not what is trained.
FREE_TO_CHANGE = re.compile(
    r"(ckpt_path|compile|compare_by|run_dir|tags|test|callbacks(?!\.checkpoint\.monitor$)|logger"
    r"|schedule\.factory\.mode|data\.(root|cache_dir|where_to_get|download|checksum|published)"
    r"|trainer\.(max_epochs|max_steps|accelerator|devices|num_nodes|strategy|log_every_n_steps|limit_test_batches|default_root_dir))\b"
)


def other_setting(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first key that differs and may not; None where a run may go on."""
    keys = sorted(then.keys() | now.keys())
    return next((k for k in keys if then.get(k) != now.get(k) and not FREE_TO_CHANGE.match(k)), None)
