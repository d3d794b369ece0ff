"""The import floors of the house (DESIGN section 3), as data: a module imports only from its own or a lower floor."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import symboliclight

ROOT = Path(symboliclight.__file__).parent
FLOORS: list[set[str]] = [
    {"atomic", "errors", "config", "tokenizer", "checkpoint", "provenance", "processor", "lock", "parts",
     "pieces", "turns"},
    {"ops", "_native"},
    {"model", "data", "engine", "_engine"},
    {"distribution", "sampling", "likelihood", "runner", "train", "optim", "distributed", "calibration"},
    {"evaluate", "evals", "sparsity", "operations", "energy", "study", "report", "plots", "rasters", "recipes",
     "budget", "interop", "quality", "card", "benchmarks"},
    {"cli", "commands", "serve"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
NO_TORCH = ["config", "tokenizer", "checkpoint", "data", "data.corpus", "data.shards", "data.batches", "engine",
            "sampling", "engine", "interop.nir.executor", "cli"]


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
