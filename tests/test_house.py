"""The floor plan of ``src``: rooms import what is below them, never what is above.

``python -m tests.test_house [FOLDER]`` prints the figures of this checkout, or of another one.
"""

import ast
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up; rooms of one floor do not import each other. Commands lie at the root and import what they like.
FLOORS = (
    ("system", "metrics"),
    ("networks", "data"),
    ("models",),
    ("exploration",),
    ("training",),
    ("runs",),
    ("evaluation", "sweeps", "auditing", "detection"),
    ("reporting", "benchmark"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
COMMANDS = {"train", "audit", "detect", "evaluate", "explore", "report"}
Arrow = tuple[str, str]


def room_of(path: Path, source: Path) -> str:
    """Name the folder in ``source`` that holds a file; a module at the root is a room of its own."""
    return path.relative_to(source).parts[0].removesuffix(".py")


def imports(root: Path = ROOT) -> dict[Arrow, list[str]]:
    """Map each pair of rooms, importing and imported, to the lines of the imports between them."""
    arrows = defaultdict(list)
    for path in sorted((root / "src").rglob("*.py")):
        room = room_of(path, root / "src")
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [f"src.{alias.name}" for alias in node.names] if node.module == "src" else [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for package, _, rest in (name.partition(".") for name in names):
                imported = rest.partition(".")[0]
                if package == "src" and imported and imported != room:
                    arrows[room, imported].append(f"{path.relative_to(root)}:{node.lineno}")
    return arrows


def pointing_up(arrows: dict[Arrow, list[str]]) -> dict[Arrow, list[str]]:
    """Select the imports that the floor plan forbids: from a room of its own or a higher floor, or from a command."""
    return {
        (room, imported): lines
        for (room, imported), lines in arrows.items()
        if room in FLOOR and FLOOR.get(imported, len(FLOORS)) >= FLOOR[room]
    }


def test_every_room_has_its_floor_and_only_commands_lie_at_the_root():
    source = ROOT / "src"
    assert {path.parent.name for path in source.glob("*/*.py")} == set(FLOOR)
    assert {path.stem for path in source.glob("*.py")} == COMMANDS | {"__init__"}


def test_imports_point_down():
    assert not pointing_up(imports())


def test_the_figures_count_what_is_there(tmp_path):
    """Two rooms that import each other are a cycle, and the arrow of the lower one points up."""
    for name, text in {
        "train.py": "import src.models.base\n",
        "models/base.py": "from src.data import arrays\nfrom src import metrics\nimport torch\n",
        "data/arrays.py": "def late():\n    from src.models.base import BaseVAE\n",
        "metrics/means.py": "",
    }.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert set(imports(tmp_path)) == {
        ("train", "models"), ("models", "data"), ("models", "metrics"), ("data", "models"),
    }  # fmt: skip
    assert pointing_up(imports(tmp_path)) == {("data", "models"): ["src/data/arrays.py:2"]}
    printed = figures(tmp_path)
    assert "3 rooms, 1 modules at the root, 6 lines" in printed
    assert "3 arrows between rooms, 1 against the floor plan, 2 on a cycle" in printed


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


def on_a_cycle(arrows: set[Arrow]) -> set[Arrow]:
    """Select the arrows between rooms that import each other in a circle."""
    reached: dict[str, set[str]] = defaultdict(set)
    for room, imported in arrows:
        reached[room].add(imported)
    for middle in list(reached):  # Warshall's transitive closure
        for rooms in reached.values():
            if middle in rooms:
                rooms.update(reached[middle])
    return {(room, imported) for room, imported in arrows if room in reached[imported]}


def figures(root: Path) -> str:
    """Count rooms, arrows and lines of a checkout.

    An older one has modules at the root, which count as rooms of their own where arrows are counted with them.
    """
    source = root / "src"
    lines = Counter()
    for path in source.rglob("*.py"):
        lines[room_of(path, source)] += len(path.read_text().splitlines())
    folders = {path.parent.name for path in source.glob("*/*.py")}
    arrows = set(imports(root))
    between = {arrow for arrow in arrows if folders.issuperset(arrow)}
    up = [arrow for arrow in pointing_up(imports(root)) if folders.issuperset(arrow)]
    return "\n".join(
        [
            f"{len(folders)} rooms, {len(lines.keys() - folders - {'__init__'})} modules at the root, "
            f"{lines.total():,} lines",
            f"{len(between)} arrows between rooms, {len(up)} against the floor plan, "
            f"{len(on_a_cycle(between))} on a cycle",
            f"{len(arrows)} arrows with the modules at the root, {len(on_a_cycle(arrows))} on a cycle",
            *(f"{count:6,}  {room}" for room, count in lines.most_common() if room != "__init__"),
        ]
    )


if __name__ == "__main__":
    print(figures(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
