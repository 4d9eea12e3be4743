"""Run the robustness tests: ``make torture``, or ``python -m tests.torture --only kills --kills 50 --seed 3``."""

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
    """Run the campaign. Return the exit status: 1 if there were faults."""
    parser = argparse.ArgumentParser("python -m tests.torture", description=__doc__)
    parser.add_argument("--only", choices=KINDS, action="append", help="a kind of test; may be repeated (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (0)")
    parser.add_argument("--count", type=float, default=1.0, help="factor of the usual number of cases (1.0)")
    parser.add_argument("--kills", type=int, default=20, help="processes to kill (20)")
    parser.add_argument("--jobs", type=int, default=processors(), help="commands at a time (one per processor)")
    parser.add_argument("--folder", type=Path, help="an empty folder for all files (default: a temporary one)")
    args = parser.parse_args()
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="torture-")) if args.folder is None else args.folder.resolve()
    settings = Settings(folder, args.seed, args.count, args.kills, args.jobs)
    with open(os.devnull, "w") as null:  # start the server in this folder, so that its commands find the project
        WARM.start("tests.say", ["end", "return"], os.environ, null).wait()
    os.chdir(folder)
    table, began = Table(), time.monotonic()
    try:
        for kind in args.only or KINDS:
            print(f"--- {kind}", flush=True)
            campaign(kind, settings, table)
    except KeyboardInterrupt:
        print("interrupted: the table holds the cases up to now")
    finally:
        WARM.close()
        table.save(folder)
    print(f"\n{table.text()}\n\n{time.monotonic() - began:.0f} s, seed {args.seed}")
    if table.faults or args.folder is not None:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if table.faults else 0


def campaign(kind: str, settings: Settings, table: Table) -> None:
    """Run the cases of one kind and add them to the table."""
    try:
        for case in import_module(f"tests.torture.{kind}").cases(settings, table):
            table.add(case)
    except Exception as error:  # an error of the campaign itself is a fault; the other kinds still run
        traceback.print_exc()
        command = f"python -m tests.torture --only {kind} --seed {settings.seed}"
        table.add(Case(kind, "the campaign itself", command, [f"{type(error).__name__}: {error}"]))


if __name__ == "__main__":
    sys.exit(main())
