"""README and docs: figures come from results/, links lead somewhere, and shown commands exist."""

import json
import lzma
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from symboliclight import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WHOLE = {"from-transformers.md"}  # tests of their own run these pages from top to bottom


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.split("  #")[0].strip() for line in lines if line.startswith("symboliclight ")]
    return found


def test_tables_agree_with_results():
    check = [sys.executable, str(ROOT / "tools" / "fill_docs.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_shown_commands_parse(command):
    args = cli.parser().parse_args(shlex.split(command)[1:])
    assert callable(args.run)


def run_commands(page: Path) -> None:
    """Run the page's own commands in order, in the present folder; `#` begins a comment."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                assert words[0] == "symboliclight", f"{page.name} shows {line!r}, which the test cannot run"
                assert cli.main(words[1:]) == 0, f"{page.name}: {line}"


def test_coming_from_nanogpt(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "from-nanogpt.md"
    (config,) = map(json.loads, blocks(page, "json"))
    assert config["train"]["tokens"] == 2000 * 12 * 64  # as the page's table counts
    config["train"] |= {"tokens": 8 * 12 * 64, "warmup_steps": 2}
    (tmp_path / "shakespeare.json").write_text(json.dumps(config))
    with lzma.open(ROOT / "src" / "symboliclight" / "data" / "demo" / "en_fiction.txt.xz", "rt") as text:
        (tmp_path / "input.txt").write_text(text.read(150_000), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run_commands(page)
    assert {"last", "best", "metrics.jsonl"} <= {p.name for p in (tmp_path / "out-gpt2").iterdir()}
    assert capsys.readouterr().out.count("First Citizen:") == 4  # three samples, and one from the exported folder


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake (\w+)", PAGES[0].read_text(encoding="utf-8")))))
def test_make_targets_of_the_readme_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("code", [b for page in PAGES if page.name not in WHOLE for b in blocks(page, "python")])
def test_python_of_the_pages_runs(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
