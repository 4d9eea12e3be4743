"""How fast this machine trains, beside the tutorials' loop and the best one written by hand.

``python -m src.benchmark`` (``make bench``) prints tables and writes them, as CSV and as pictures too, to
``outputs/benchmark``. Ratios are of the same run; nothing else should run meanwhile.
"""

if not __package__:  # started as a file, it does not find the project
    raise SystemExit(f"error: type python -m src.benchmark in {__file__.rpartition('src')[0]}")

import logging

from omegaconf import DictConfig, OmegaConf

from src.benchmark.settings import checked
from src.system.cli import command

log = logging.getLogger(__name__)


@command("benchmark")
def main(cfg: DictConfig) -> None:
    """Measure the parts that are asked for, one after another."""
    settings = checked(OmegaConf.to_container(cfg, resolve=True))
    # torch comes after the settings are checked: a typo is answered at once.
    from src.benchmark.parts import Benchmark
    from src.system.console import hush_libraries

    hush_libraries()
    benchmark = Benchmark(settings)
    log.info("%s\n", benchmark.conditions)
    for part in benchmark.parts:
        log.info("%s\n", benchmark.measure(part))
    log.info("Written to %s", benchmark.folder)


if __name__ == "__main__":
    main()
