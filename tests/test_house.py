"""The floor plan: rooms import what is below them, never what is above."""

import ast
import subprocess
import sys
from collections import defaultdict

import pytest

from tests.helpers import ROOT

# From the ground up; rooms of a floor do not import each other. Commands lie at the root and import what they like.
FLOORS = (
    ("system", "metrics"),
    ("networks", "data"),
    ("models",),
    ("exploration",),
    ("training",),
    ("runs",),
    ("evaluation", "sweeps"),
    ("reporting", "benchmark"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
COMMANDS = {"train", "evaluate", "explore", "report"}


def imports() -> dict[tuple[str, str], list[str]]:
    """Which room imports which, and where."""
    arrows = defaultdict(list)
    for path in sorted((ROOT / "src").rglob("*.py")):
        room = path.relative_to(ROOT / "src").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            named = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            named += [f"{node.module}.{alias.name}" for alias in node.names] if named == ["src"] else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in named:
                parts = (name or "").split(".")
                if parts[0] == "src" and len(parts) > 1 and parts[1] != room:
                    arrows[room, parts[1]].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return arrows


def test_every_room_has_its_floor_and_only_commands_lie_at_the_root():
    assert {path.name for path in (ROOT / "src").iterdir() if path.is_dir() and path.name != "__pycache__"} == set(
        FLOOR
    )
    assert {path.stem for path in (ROOT / "src").glob("*.py")} == COMMANDS | {"__init__"}


def test_imports_point_down():
    up = {
        f"{a} -> {b}": places
        for (a, b), places in imports().items()
        if a in FLOOR and (b not in FLOOR or FLOOR[b] >= FLOOR[a])
    }
    assert not up


@pytest.mark.slow
def test_models_networks_data_and_metrics_are_used_without_hydra():
    """In a notebook; ``src.system.errors``, which nearly every module imports, needs the standard library alone."""
    rooms = [path for room in ("models", "networks", "data", "metrics") for path in (ROOT / "src" / room).glob("*.py")]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in rooms]
    code = (
        "import sys, importlib\n"
        "before = set(sys.modules)\n"
        "import src.system.errors\n"
        "added = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert added <= sys.stdlib_module_names | {'src'}, added\n"
        f"for module in {modules}: importlib.import_module(module)\n"
        "assert not {'hydra', 'omegaconf'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
