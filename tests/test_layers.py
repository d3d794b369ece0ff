"""The import floors of the house (DESIGN section 3), as data: a module imports only from its own or a lower floor."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import symboliclight

ROOT = Path(symboliclight.__file__).parent
FLOORS: list[set[str]] = [
    {"core", "_native", "_engine"},
    {"ops"},
    {"data", "engine"},
    {"model"},
    {"train"},
    {"generate"},
    {"measure"},
    {"interop", "show", "serve"},
    {"study", "benchmarks"},
    {"commands"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
NO_TORCH = ["core.config", "core.tokenizer", "core.checkpoint", "data", "data.corpus", "data.shards", "data.batches",
            "engine", "generate.sampling", "interop.nir.executor", "commands.cli"]


def imports(path: Path) -> set[str]:
    """Rooms of the package that a source file imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{a.name}" for a in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("symboliclight.")}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_module_imports_nothing_from_a_higher_floor(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    assert room in FLOOR, f"{room} has no floor: name it in FLOORS"
    higher = {r for r in imports(path) if r in FLOOR and FLOOR[r] > FLOOR[room]}
    assert not higher, f"{room} (floor {FLOOR[room]}) imports {higher}"


@pytest.mark.parametrize("module", [m if "nir" not in m else pytest.param(m, marks=pytest.mark.needs("nir"))
                                    for m in NO_TORCH])
def test_module_imports_without_torch(module):
    code = f"import sys; sys.modules['torch'] = None; import symboliclight.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_printing_is_left_to_the_command_line():
    for path in ROOT.rglob("*.py"):
        if path.parent.name == "commands" or path.name == "cli.py":
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


@pytest.mark.parametrize("source", sorted((Path(__file__).parents[1] / "csrc").rglob("*.?pp")), ids=lambda p: p.name)
def test_kernels_and_engine_include_themselves_and_simd_alone(source):
    room = source.parent.name
    included = [line.split('"')[1] for line in source.read_text().splitlines() if line.startswith('#include "')]
    assert {name.split("/")[0] for name in included} <= {room, "simd"}
