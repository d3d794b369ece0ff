"""Fill the tables of README*.md and docs/*.md from results/*.json; `--check` only says whether they agree.

A table stands between `<!-- results/NAME.json -->` and `<!-- end -->` and is never written by hand. A word after the
name chooses one of several tables: `parts` or `runs` of a benchmark, or one of `energy.tables`,
`interop.hardware_tables`, `interop.nir.tables` or `card.TABLES`, or one that the report of a study holds, or a section
of `docs/results/claims.toml`, which lists claims and where in which result file their figures stand.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from symboliclight.interop import hardware_tables
from symboliclight.interop.nir import tables as nir_tables
from symboliclight.measure.energy import tables
from symboliclight.show import card
from symboliclight.show.report import comparison_rows

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".", "vnni", "zen4", "avx2")  # one a kind of processor
BLOCK = re.compile(r"(<!-- ((?:results|docs)/[\w./-]+\.(?:json|toml))(?: ([\w-]+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def table(path: str, view: str | None) -> str:
    """Markdown table of one result file: a benchmark's rows or parts, a named one, or the demo's comparison."""
    if path.endswith(".toml"):
        head, rows = claims(ROOT / path, view or "")
        return markdown(head, rows)
    result = json.loads((ROOT / path).read_text(encoding="utf-8"))
    head: tuple[str, ...]
    if "card" in result:
        head, rows = card.TABLES[view or "facts"](result)
    elif "study" in result:
        if view not in result["tables"]:
            return "No runs yet.\n"
        head, rows = result["tables"][view]["head"], result["tables"][view]["rows"]
    elif view and "break_even" in result:
        head, rows = tables.TABLES[view](result)
    elif view and "targets" in result:
        head, rows = hardware_tables.TABLES[view](result)
    elif view and ("texts" in result or "readers" in result):
        head, rows = nir_tables.TABLES[view](result)
    elif view == "times":
        head, rows = times(ROOT / path)
    elif view == "processors":
        head, rows = processors(ROOT / path)
    elif view == "parts":
        head = ("model", "part", "seconds a step", "bound by", "floor, s", "times the floor")
        rows = [(model, p["part"], f"{p['seconds']:.3f}", p["bound"] if p["floor_s"] else "", f"{p['floor_s']:.3f}",
                 "" if p["overhead"] is None else f"{p['overhead']:.1f}")
                for model, found in result["parts"].items() for p in found]
    elif "rows" in result:
        head = ("what", "unit", "ours", "against", "ratio", "asked")
        rows = [(r["name"], r["unit"], f"{r['value']:,.4g}", f"{r['against']:,.4g}", f"**{r['ratio']:.2f}**",
                 "" if r["target"] is None else f"{r['target']:g}") for r in result["rows"]]
    else:
        head, rows = comparison_rows(result["runs"])
    return markdown(head, rows)


def processors(file: Path) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The ratios of one benchmark that were asked for, on each kind of processor that has a result of it: bold where
    one was missed, with what was asked there where that is not what the first column asks."""
    files = [path for folder in FOLDERS if (path := file.parent / folder / file.name).exists()]
    found = {kind(result["machine"]): result for result in (json.loads(p.read_text(encoding="utf-8")) for p in files)}
    rows = {name: {ours(r["name"]): r for r in result["rows"] if r["target"] is not None}
            for name, result in found.items()}
    table = []
    for what in dict.fromkeys(what for of in rows.values() for what in of):
        asked = next(of[what]["target"] for of in rows.values() if what in of)
        table.append((what, f"{asked:g}", *(_reached(of.get(what), asked) for of in rows.values())))
    return ("what", "asked", *found), table


def kind(machine: dict[str, Any]) -> str:
    """What a column calls a processor: maker, and the best instructions for integers that it has or is held to."""
    maker = "EPYC" if "EPYC" in machine["processor"] else "Xeon"
    if machine.get("caps", {}).get("SYMBOLICLIGHT_MAX_ISA") == "avx2" or "avx512f" not in machine["instructions"]:
        return f"{maker}, AVX2 alone"
    return f"{maker}, {'AMX' if 'amx_int8' in machine['instructions'] else 'AVX-512 VNNI'}"


def _reached(row: dict[str, Any] | None, asked: float) -> str:
    if row is None:
        return ""
    ratio = f"{row['ratio']:.2f}" if row["ratio"] >= row["target"] else f"**{row['ratio']:.2f}**"
    return ratio if row["target"] == asked else f"{ratio} (asked: {row['target']:g})"


def times(file: Path) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """What the demo took and trained on each kind of processor: `file` and its namesakes in folders beside it."""
    rows = []
    for found in (file, *sorted(file.parent.glob(f"*/{file.name}"))):
        result = json.loads(found.read_text(encoding="utf-8"))
        budget, where = result["budget"], result["machine"]
        held = ", held to AVX2" if "SYMBOLICLIGHT_MAX_ISA" in where.get("caps", {}) else ""
        rows.append((f"{where['processor']}, {where['cores']} cores{held}", budget["precision"],
                     f"{result['seconds'] / 60:.1f} of {budget['minutes']:g} min", f"{budget['tokens']:,}"))
    return ("processor", "products", "took", "tokens of each model"), rows


def ours(name: str) -> str:
    """The name of a row without the rival's."""
    return name.partition(" against gpt2-")[0]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def claims(file: Path, section: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The claims of one section: what, ours, published, and the result file. `find` leads to each figure by `follow`,
    `show` formats all of them."""
    rows = []
    for claim in tomllib.loads(file.read_text(encoding="utf-8"))[section]:
        result = json.loads((ROOT / claim["result"]).read_text(encoding="utf-8"))
        ours = claim["show"].format(*(follow(result, path) for path in claim["find"]))
        link = f"[{Path(claim['result']).name}](../../{claim['result']})"
        rows.append((claim["what"], ours, claim["published"], link))
    if section == "readme":
        return ("what", "SymbolicLight", "beside"), [row[:3] for row in rows]
    return ("what", "ours", "published", "measured in"), rows


def follow(node: Any, path: Sequence[Any]) -> Any:
    """The value at `path`: keys of objects; the one entry of a list whose name or label it is, with * for any part, or
    its place; in a table of a report the cells that tell a row, as a list, and then its column."""
    for key in path:
        if isinstance(key, int):
            node = node[key]
        elif isinstance(node, list):
            (node,) = (entry for entry in node if fnmatchcase(entry.get("name") or entry.get("label"), key))
        elif isinstance(key, list):
            (row,) = (row for row in node["rows"] if row[: len(key)] == key)
            node = dict(zip(node["head"], row, strict=True))
        else:
            node = node[key]
    return node


def filled(text: str) -> str:
    """The page with every table as its result file has it."""
    return BLOCK.sub(lambda m: m[1] + table(m[2], m[3]) + m[4], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page differs from results/")
    check = parser.parse_args().check
    stale = []
    for page in [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        if filled(text) != text:
            stale.append(page.name)
            if not check:
                page.write_text(filled(text), encoding="utf-8")
    if stale and check:
        sys.stderr.write(f"{', '.join(stale)} differ from results/; run `python tools/fill_docs.py`\n")
    return int(bool(stale and check))


if __name__ == "__main__":
    sys.exit(main())
