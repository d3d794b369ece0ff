"""The site: no public name is missing from its reference, pages are short, and none asks another site for anything."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from symboliclight.commands import cli
from symboliclight.core.config import DataConfig, ModelConfig, TrainConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WORDS = 1200  # of prose a page: tables and code do not count


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "tools" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_in_the_reference_with_a_docstring(site):
    named = set(re.findall(r"^::: symboliclight\.([\w.]+)$", site.python(), re.M))
    for room in site.ROOMS:
        for file in (site.SOURCE / room).rglob("*.py"):
            public = [n for n in ast.parse(file.read_text(encoding="utf-8")).body
                      if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]
            module = ".".join(file.relative_to(site.SOURCE).with_suffix("").parts).removesuffix(".__init__")
            assert not public or module in named, f"{module} is not in the reference"


def test_every_command_and_option_is_in_the_reference(site):
    text = site.command_line()
    for words, parser in site.commands(cli.parser()):
        (section,) = re.findall(rf"^## symboliclight {' '.join(words)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
        for action in parser._actions:
            if action.option_strings and action.dest != "help" and action.help != "==SUPPRESS==":
                assert f"`{action.option_strings[0]}" in section.replace("`-", "`-"), (words, action.option_strings)


def test_every_field_has_a_meaning(site):
    for kind in (ModelConfig, DataConfig, TrainConfig):
        assert not [name for name, meaning in site.comments(kind).items() if not meaning]


def prose(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    return len(" ".join(line for line in text.split("\n") if not line.startswith(("|", "<!--"))).split())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT / "docs").as_posix())
def test_a_page_is_short_and_is_reached(page):
    assert prose(page) <= WORDS
    assert page.relative_to(ROOT / "docs").as_posix() in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.needs("mkdocs", "material", "mkdocstrings")
def test_it_is_built_and_asks_nobody_else(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"""<(?:script|img|link|iframe)[^>]*?(?:src|href)=["']?(https?:[^"' >]+)""", text)
        assert not [url for url in fetched if "canonical" not in url], page.name
        for target in re.findall(r"""(?:src|href)=["']?([^"'# >]+)""", text):
            if not re.match(r"[a-z]+:|//|\$|\{", target) and "404" not in page.name:
                assert (page.parent / target).exists(), f"{page.name} leads to {target}"
    index = json.loads((tmp_path / "search" / "search_index.json").read_text(encoding="utf-8"))
    words = {word for found in index["docs"] for word in re.split(r"[\s\u200b]+", found["text"])}
    assert {"spike", "脉冲"} <= words
