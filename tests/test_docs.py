"""README and docs: figures come from results/, links lead somewhere, and shown commands exist."""

import importlib.util
import io
import json
import lzma
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from symboliclight.commands import cli

ROOT = Path(__file__).resolve().parents[1]
READMES = sorted(ROOT.glob("README*.md"))
PAGES = [*READMES, *sorted((ROOT / "docs").rglob("*.md"))]
# Tests of their own run these pages from top to bottom.
WHOLE = {"from-llama-cpp.md", "from-snntorch.md", "from-transformers.md"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.split("  #")[0].strip() for line in lines if line.startswith("symboliclight ")]
    return found


@pytest.mark.needs("torch")
def test_tables_agree_with_results():
    check = [sys.executable, str(ROOT / "tools" / "fill_docs.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.needs("torch")
def test_a_table_of_processors_marks_what_missed(tmp_path):
    spec = importlib.util.spec_from_file_location("fill_docs", ROOT / "tools" / "fill_docs.py")
    fill_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill_docs)
    wide = ["avx2", "avx512f", "avx512_vnni"]
    machines = {".": {"processor": "Intel Xeon", "instructions": [*wide, "amx_int8"]},
                "zen4": {"processor": "AMD EPYC 9B14", "instructions": wide},
                "avx2": {"processor": "Intel Xeon", "instructions": wide, "caps": {"SYMBOLICLIGHT_MAX_ISA": "avx2"}}}
    for folder, ratio, asked in ((".", 2.5, 2), ("zen4", 1.5, 2), ("avx2", 1.8, 1.5)):
        (tmp_path / folder).mkdir(exist_ok=True)
        rows = [{"name": f"fast against gpt2-201m {folder}", "ratio": ratio, "target": asked},
                {"name": "memory", "ratio": 1, "target": None}]
        if folder == ".":
            rows.append({"name": "new", "ratio": 3.0, "target": 2})
        (tmp_path / folder / "speed.json").write_text(json.dumps({"machine": machines[folder], "rows": rows}))
    head, rows = fill_docs.processors(tmp_path / "speed.json")
    assert head == ("what", "asked", "Xeon, AMX", "EPYC, AVX-512 VNNI", "Xeon, AVX2 alone")
    assert rows == [("fast", "2", "2.50", "**1.50**", "1.80 (asked: 1.5)"), ("new", "2", "3.00", "", "")]


def test_both_readmes_show_the_same():
    """Code but for its comments, sections, tables, and where pictures and links lead, in the same order."""
    def shown(page):
        text = page.read_text(encoding="utf-8").split("\n", 4)[4]  # below the links from one to the other
        code = [re.sub(r"\s+#.*", "", block) for block in re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)]
        links = re.findall(r"\]\(([^)]+)\)", text)
        return {"code": code, "sections": len(re.findall("^## ", text, re.M)), "links": links,
                "tables": re.findall(r"<!-- (?!end)(.*?) -->", text), "rows": len(re.findall(r"^\|", text, re.M)),
                "points": len(re.findall("^- ", text, re.M)), "names": sorted(re.findall(r"`([^`\n]+)`", text))}
    english, chinese = map(shown, READMES)
    for part in english:
        assert chinese[part] == english[part], part


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_shown_commands_parse(command):
    args = cli.parser().parse_args(shlex.split(command)[1:])
    assert callable(args.run)


def run_commands(page: Path, but: str = "") -> None:
    """Run the page's own commands in order, in the present folder, except those called `but`; `#` begins a comment."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[1] != but:
                assert words[0] == "symboliclight", f"{page.name} shows {line!r}, which the test cannot run"
                assert cli.main(words[1:]) == 0, f"{page.name}: {line}"


@pytest.mark.needs("torch")
def test_coming_from_nanogpt(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "how-to" / "from-nanogpt.md"
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


def test_coming_from_snntorch(small_checkpoint, small_shards, tmp_path, monkeypatch, capsys):
    for package in ("neurobench", "spikingjelly"):
        pytest.importorskip(package)
    page = ROOT / "docs" / "how-to" / "from-snntorch.md"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mini").symlink_to(small_checkpoint)
    (tmp_path / "shards").symlink_to(small_shards.path)
    monkeypatch.chdir(tmp_path)
    run_commands(page)
    assert "operations a token" in capsys.readouterr().out
    code = "\n".join(blocks(page, "python"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "membrane (2, 128)" in done.stdout and "Effective_ACs" in done.stdout
    assert len(re.findall(r"^\d+ \d+$", done.stdout, re.MULTILINE)) == 3  # tokens and spikes from ONNX


@pytest.mark.needs("torch")
def test_coming_from_llama_cpp(small_checkpoint, tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "how-to" / "from-llama-cpp.md"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mini").symlink_to(small_checkpoint)
    (tmp_path / "prompt.txt").write_text("the old city", encoding="utf-8")
    (tmp_path / "wiki.test.raw").write_text(" \n = City = \n \n The old city , and the river . \n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hello\n/exit\n")))
    run_commands(page, but="bench")
    out = capsys.readouterr().out
    assert "token_perplexity" in out and "tokens_per_second" in out and "encoder" in out
    done = subprocess.run([sys.executable, "-c", *blocks(page, "python")], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The sun") and "\nNobody" in done.stdout and (tmp_path / "prompt.state").is_file()


@pytest.mark.slow
def test_the_benchmark_for_those_who_come_from_llama_cpp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (command,) = (c for c in commands() if c.startswith("symboliclight bench decode --quick"))
    assert cli.main(shlex.split(command)[1:]) == 0
    assert json.loads((tmp_path / "bench-quick" / "bench-decode.json").read_text())["check"] == "passed"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake (\w+)", PAGES[0].read_text(encoding="utf-8")))))
def test_make_targets_of_the_readme_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("code", [b for page in PAGES if page.name not in WHOLE for b in blocks(page, "python")])
def test_python_of_the_pages_runs(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
