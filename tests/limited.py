"""A command that gets little memory: ``python -m tests.limited src.train ...`` with ``MORE_MIB`` beyond what it has."""

import os
import resource
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(os.environ["MORE_MIB"]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
