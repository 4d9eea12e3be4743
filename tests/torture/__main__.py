"""Torture the commands: ``make torture``, or ``python -m tests.torture --only kills --kills 50 --seed 3``."""

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path

from src.system.machine import processors
from tests.helpers import WARM
from tests.torture.commands import Settings
from tests.torture.table import Case, Table

KINDS = ("inputs", "numbers", "disk", "kills")


def main() -> int:
    """Run a campaign; the exit status is 1 where there were faults."""
    parser = argparse.ArgumentParser("python -m tests.torture", description=__doc__)
    parser.add_argument("--only", choices=KINDS, action="append", help="a kind; may be repeated (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="decides every case (0)")
    parser.add_argument("--count", type=float, default=1.0, help="how many cases: a factor of the usual number (1.0)")
    parser.add_argument("--kills", type=int, default=20, help="processes that are killed (20)")
    parser.add_argument("--jobs", type=int, default=processors(), help="commands at a time (one a processor)")
    parser.add_argument("--folder", type=Path, help="an empty folder for all of it (default: a temporary one)")
    asked = parser.parse_args()
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="torture-")) if asked.folder is None else asked.folder.resolve()
    settings = Settings(folder, asked.seed, asked.count, asked.kills, asked.jobs)
    with open(os.devnull, "w") as nowhere:  # the server is started in this folder, and its commands find the project
        WARM.start("tests.say", ["end", "return"], os.environ, nowhere).wait()
    os.chdir(folder)
    table, began = Table(), time.monotonic()
    try:
        for kind in asked.only or KINDS:
            print(f"--- {kind}", flush=True)
            campaign(kind, settings, table)
    except KeyboardInterrupt:
        print("interrupted: the table is of what was tried until then")
    finally:
        WARM.close()
        table.save(folder)
    print(f"\n{table.text()}\n\n{time.monotonic() - began:.0f} s, seed {asked.seed}")
    if table.faults or asked.folder is not None:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if table.faults else 0


def campaign(kind: str, settings: Settings, table: Table) -> None:
    """Run the cases of one kind."""
    try:
        for found in import_module(f"tests.torture.{kind}").cases(settings, table):
            table.add(found)
    except Exception as error:  # the campaign's own: the other kinds go on, and this one counts as a fault
        traceback.print_exc()
        again = f"python -m tests.torture --only {kind} --seed {settings.seed}"
        table.add(Case(kind, "the campaign itself", again, [f"{type(error).__name__}: {error}"]))


if __name__ == "__main__":
    sys.exit(main())
