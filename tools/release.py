"""What a release needs, in dist/: `make release`.

A wheel and a source archive, each installed into an empty environment and used; the notes of the version from
CHANGELOG.md, with the hashes of both files. Nothing is uploaded.
"""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import wheel

ROOT, DIST = wheel.ROOT, wheel.DIST


def main() -> None:
    version = versions()
    if subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True, cwd=ROOT).stdout:
        sys.exit("there are changes that no commit has; commit them first, so that the release can be built again")
    notes = section((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    wheel.main()
    archive = source_archive()
    from_source(archive)
    files = sorted(p for p in DIST.iterdir() if p.suffix in (".whl", ".gz"))
    hashes = "".join(f"    {hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files)
    (DIST / "NOTES.md").write_text(f"# SymbolicLight {version}\n\n{notes}\n\n{hashes}", encoding="utf-8")
    wheel.say(f"{', '.join(p.name for p in files)} and NOTES.md lie in dist/; tag v{version} and upload them")


def versions() -> str:
    """The version, the same in pyproject.toml, in the package and in CITATION.cff."""
    found = {name: re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"), re.M)[0] for name, pattern in (
        ("pyproject.toml", r'^version = "(.+)"$'), ("src/symboliclight/core/version.py", r'^__version__ = "(.+)"$'),
        ("CITATION.cff", r"^version: (.+)$"))}
    if len(set(found.values())) > 1:
        sys.exit(f"the version differs: {found}; make them the same")
    return found["pyproject.toml"]


def section(changelog: str, version: str) -> str:
    """What the changelog says of a version; what is unreleased if it does not name it yet."""
    for title in (rf"## {re.escape(version)}\b[^\n]*", "## Unreleased"):
        if found := re.search(rf"^{title}\n(.*?)(?=^## |\Z)", changelog, re.M | re.S):
            return found[1].strip()
    sys.exit(f"CHANGELOG.md has neither {version} nor Unreleased")


def source_archive() -> Path:
    """The source as an archive that pip builds from."""
    wheel.pip(wheel.MADE, "install", "build")
    subprocess.run([wheel.MADE / "bin" / "python", "-m", "build", "--sdist", "--no-isolation", "--outdir", DIST, ROOT],
                   check=True, stdout=subprocess.DEVNULL)
    (archive,) = DIST.glob("*.tar.gz")
    return archive


def from_source(archive: Path) -> None:
    """Install the archive, compiled anew, into an empty environment, and write text with it."""
    folder = ROOT / "build" / "sdist-used"
    shutil.rmtree(folder, ignore_errors=True)
    wheel.environment(sys.executable, folder)
    wheel.pip(folder, "install", archive)
    done = subprocess.run([folder / "bin" / "symboliclight", "generate", wheel.PROMPT, "--max-tokens", "20"],
                          check=True, capture_output=True, text=True, cwd=folder)
    if not done.stdout.startswith(wheel.PROMPT):
        sys.exit(f"what was built from {archive.name} wrote {done.stdout!r}")


if __name__ == "__main__":
    main()
