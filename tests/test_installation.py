"""Other installations than that of the tests: without a C++ compiler, and from the wheel of `make wheel`."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "symboliclight"
USED = ROOT / "build" / "wheel-used"  # where `make wheel` installed it
WITHOUT_TORCH = """
import sys; sys.modules["torch"] = None
from symboliclight.commands.cli import main
sys.exit(main(sys.argv[1:]))
"""
GENERATE = ["generate", "Once upon a time", "--max-tokens", "16", "--seed", "1"]


@pytest.fixture(scope="module")
def uncompiled(tmp_path_factory):
    """An environment into which `pip install .` put the package where there is no compiler; and its source."""
    folder = tmp_path_factory.mktemp("uncompiled")
    tree, environment = folder / "tree", folder / "environment"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    for file in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    ask = "import site; print(site.getsitepackages()[0])"
    packages = Path(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("\n".join(others))  # what it depends on; a second symboliclight stays behind
    (tools := folder / "tools").mkdir()
    for tool in ("ninja", "make"):  # `pip install .` fetches ninja where neither is there
        if found := shutil.which(tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"):
            (tools / tool).symlink_to(found)
    nowhere = {"PATH": str(tools), "CC": "/nowhere/cc", "CXX": "/nowhere/c++"}
    done = subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-build-isolation",
                           "--no-deps", "--no-index", "--ignore-installed", tree], capture_output=True, text=True,
                          env={**os.environ, **nowhere})
    assert done.returncode == 0, done.stdout + done.stderr
    return python, packages / "symboliclight", tree


@pytest.mark.needs("scikit_build_core", "cmake")
@pytest.mark.parametrize("how", [["-m", "symboliclight"], ["-c", WITHOUT_TORCH]], ids=["all packages", "without torch"])
def test_without_a_compiler_it_installs_and_generate_says_what_is_missing(uncompiled, how):
    python, package, _ = uncompiled
    assert (package / "commands" / "cli.py").exists() and not list(package.glob("*.so"))
    done = subprocess.run([python, *how, *GENERATE], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert "no native runtime" in done.stderr and "install GCC or Clang and run `pip install .` again" in done.stderr


@pytest.mark.needs("scikit_build_core", "cmake")
def test_a_compiler_that_comes_later_is_looked_for_again(uncompiled):
    (cache,) = uncompiled[2].glob("build/*/CMakeCache.txt")
    assert "CMAKE_CXX_COMPILER:" not in cache.read_text()


@pytest.fixture(scope="module")
def wheel():
    """The wheel of `make wheel`, if it is of this source; continuous integration always has it."""
    leave = pytest.fail if os.environ.get("CI") else pytest.skip
    for found in (ROOT / "dist").glob("symboliclight-*.whl"):
        with zipfile.ZipFile(found) as files:
            packed = {n: files.read(n) for n in files.namelist() if n.startswith("symboliclight/") and n[-1] != "/"}
        ours = {f"symboliclight/{p.relative_to(SOURCE).as_posix()}": p.read_bytes() for p in SOURCE.rglob("*")
                if p.is_file() and p.suffix not in (".pyc", ".so")}
        newer = all(found.stat().st_mtime > p.stat().st_mtime for p in (ROOT / "csrc").rglob("*.?pp"))
        if newer and USED.exists() and ours == {n: data for n, data in packed.items() if not n.endswith(".so")}:
            return found, packed
        return leave(f"{found.name} is of another source: make wheel")
    return leave("there is no wheel: make wheel")


def test_the_wheel_has_both_native_modules_under_the_tag_that_it_claims(wheel):
    file, packed = wheel
    _, _, python, abi, platform = file.stem.split("-")
    assert platform.startswith("manylinux_2_")
    assert (python, abi) == ("cp312", "abi3") or python == abi
    modules = sorted(n for n in packed if n.endswith(".so"))
    assert [n.split(".")[0] for n in modules] == ["symboliclight/_engine", "symboliclight/_native"]
    assert all(n.endswith(".abi3.so") == (abi == "abi3") for n in modules)


def test_an_empty_environment_with_the_wheel_writes_the_same_text(wheel):
    python = USED / "bin" / "python"
    where = "import importlib.util, symboliclight._engine as e; print(importlib.util.find_spec('torch'), e.__file__)"
    found = subprocess.run([python, "-c", where], capture_output=True, text=True, cwd="/")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("None ") and str(USED) in found.stdout
    texts = []
    for by in (python, sys.executable):
        done = subprocess.run([by, "-m", "symboliclight", *GENERATE], capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert texts[0] == texts[1] and len(texts[0]) > 30
