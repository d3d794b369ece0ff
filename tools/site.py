"""What mkdocs does not know: pages made from the code, and links from pages to files beside docs/.

Hooks of mkdocs.yml. `symboliclight` must be installed; mkdocs is imported by mkdocs alone, so that tests can read the
generated pages without it.
"""

import argparse
import ast
import dataclasses
import os
import re
import shutil
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from symboliclight.commands import cli
from symboliclight.core import config as settings

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "symboliclight"
ROOMS = ("core", "ops", "data", "engine", "model", "train", "generate", "measure", "serve", "interop", "show", "study")
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_copied: dict[str, Path] = {}  # place in the site -> file of the repository that a page links to


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: add the pages that are made here."""
    from mkdocs.structure.files import File

    for name, text in generated().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """mkdocs: links that leave docs/ lead to copies in the site."""
    folder = ROOT if page.file.src_uri == "zh.md" else (ROOT / "docs" / page.file.src_uri).parent

    def lead(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        if not target or target.startswith(("http:", "https:", "mailto:")):
            return match[0]
        file = Path(os.path.normpath(folder / target))
        if file.is_relative_to(ROOT / "docs") and page.file.src_uri != "zh.md":
            return match[0]
        return f"{match[1]}{_site_link(file, page.file.src_uri)}{'#' * bool(anchor)}{anchor}{match[3]}"

    return LINK.sub(lead, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """mkdocs: the one script that the theme would fetch from elsewhere is ours (docs/javascripts)."""
    here = "../" * page.file.src_uri.count("/")
    return output.replace("https://unpkg.com/iframe-worker/shim", f"{here}javascripts/iframe-worker.js")


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """mkdocs: the same for pages that it makes itself."""
    return output_content.replace("https://unpkg.com/iframe-worker/shim", "/javascripts/iframe-worker.js")


def on_post_build(config: Any) -> None:
    """mkdocs: copy what pages link to."""
    for name, file in _copied.items():
        place = Path(config["site_dir"]) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def _site_link(file: Path, page: str) -> str:
    """The way from a page to a file of the repository: to the page that it is, or to a copy that a browser shows."""
    up = "../" * page.count("/")
    if file.is_relative_to(ROOT / "docs"):
        return up + file.relative_to(ROOT / "docs").as_posix()
    if file.name.startswith("README"):
        return up + ("zh.md" if "zh" in file.name else "index.md")
    if file.is_dir():
        file = next((f for f in sorted(file.rglob("*")) if f.is_file()), file)
    shown = file.suffix in (".json", ".svg", ".png", ".html")
    name = f"files/{file.relative_to(ROOT).as_posix()}{'' if shown else '.txt'}"
    _copied[name] = file
    return up + name


def generated() -> dict[str, str]:
    """Page -> text of everything that is made from the code."""
    return {"reference/cli.md": command_line(), "reference/config.md": configuration(), "reference/api.md": python(),
            "zh.md": (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")}


# The command line


def command_line() -> str:
    """Every command with its options, from the parsers."""
    return "# Command line\n\nBad input ends with one line on stderr and exit code 2.\n\n" + "".join(
        _section(words, parser) for words, parser in commands(cli.parser()))


def commands(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, parser) of each command that can be run, groups of commands left out."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield words, parser
    for group in groups:
        for name, inner in group.choices.items():
            yield from commands(inner, (*words, name))


def _section(words: tuple[str, ...], parser: argparse.ArgumentParser) -> str:
    rows = [(f"`{_call(action)}`", _escaped((action.help or "") % _facts(action)))
            for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    table = "".join(f"| {option} | {text} |\n" for option, text in rows)
    about = _escaped(" ".join((parser.description or "").split()))
    return (f"## symboliclight {' '.join(words)}\n\n{about}\n\n"
            + (f"| option | what it does |\n| --- | --- |\n{table}\n" if rows else ""))


def _call(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else action.metavar or ("{" + ",".join(map(str, action.choices)) + "}"
                                                            if action.choices else action.dest.upper())
    return " ".join([", ".join(action.option_strings), str(value)]).strip().replace("|", "\\|")


def _facts(action: argparse.Action) -> dict[str, Any]:
    return {**vars(action), "prog": "symboliclight"}


# Configuration


def configuration() -> str:
    """Every field of a run's configuration, its type, default and meaning, from the dataclasses and their comments."""
    text = ["# Configuration\n\nA run is a function of these fields: `--set SECTION.FIELD=VALUE` of `train`, or the "
            "JSON file of `--config`.\n\n"]
    kinds = {"model": settings.ModelConfig, "data": settings.DataConfig, "train": settings.TrainConfig}
    for section, kind in kinds.items():
        notes, hints = comments(kind), typing.get_type_hints(kind)
        text.append(f"## {section}\n\n{kind.__doc__}\n\n"
                    "| field | type | default | meaning |\n| --- | --- | --- | --- |\n")
        for field in dataclasses.fields(kind):
            default = field.default_factory() if callable(field.default_factory) else field.default
            text.append(f"| `{field.name}` | {_type(hints[field.name])} | `{default!r}` | "
                        f"{_escaped(notes[field.name])} |\n")
        text.append("\n")
    return "".join(text)


def comments(kind: type) -> dict[str, str]:
    """Field -> the comment at the end of its line; fields without one have none."""
    source = (SOURCE / "core" / "config.py").read_text(encoding="utf-8")
    classes = {node.name: node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    fields = [n for n in classes[kind.__name__] if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    after = {n.target.id: source.splitlines()[n.end_lineno - 1][n.end_col_offset :] for n in fields}  # type: ignore
    return {name: text.strip().removeprefix("#").strip() for name, text in after.items()}


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " ".join(f"`{value}`" for value in typing.get_args(hint))
    if isinstance(hint, types.UnionType):
        return " or ".join("none" if part is type(None) else _type(part) for part in typing.get_args(hint))
    return f"`{getattr(hint, '__name__', hint)}`" if typing.get_origin(hint) is None else f"`{hint}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ").replace("*", "\\*")


# Python


def python() -> str:
    """A line for mkdocstrings for every module that has public names."""
    text = ["# Python\n\n`import symboliclight` has what most need: `build`, `load`, `preset`, `ModelConfig`, "
            "`DataConfig`, `TrainConfig`, `RunConfig`, `InputError`. Below is every public name, by room, from the "
            "ground up.\n"]
    for room in ROOMS:
        text.append(f"\n## {room}\n\n")
        text += [f"::: symboliclight.{name}\n    options:\n      heading_level: 3\n\n" for name in modules(room)]
    return "".join(text)


def modules(room: str) -> list[str]:
    """Modules of a room that define public functions or classes."""
    found = []
    for file in sorted((SOURCE / room).rglob("*.py")):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        if any(isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_") for n in body):
            found.append(".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"))
    return found


if __name__ == "__main__":
    sys.stdout.write(generated()[sys.argv[1]])
