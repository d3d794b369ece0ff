"""The report of a study: report.md, report.html (self-contained), figures as SVG and PNG, report.json.

A report is a list of sections, made once and written in both forms. A study that is not finished is reported as far as
it is, and what is missing is listed.
"""

import html
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symboliclight.core.atomic import write_atomic
from symboliclight.core.errors import InputError
from symboliclight.show.report import STYLE
from symboliclight.study import search, silence, tables, writing
from symboliclight.study.figures import figures
from symboliclight.study.plan import Study
from symboliclight.study.results import Results
from symboliclight.study.tables import Evidence, Table, evidence


@dataclass(frozen=True)
class Figure:
    """A drawn figure."""

    name: str
    caption: str
    svg: str


Part = str | Table | Figure
Section = tuple[str, list[Part]]


def write_report(study: Study, results: Results, out: Path) -> dict[str, Any]:
    """Write all files into `out` and return what is in report.json. Raises `InputError` if no run has a result."""
    e = evidence(study, results)
    if not e.found:
        raise InputError(f"{results.directory} holds no result of {study.path}; run the study first: symboliclight "
                         f"study run {study.path} --results {results.directory} ...")
    drawn: dict[str, str] = {}
    for name, draw in figures(e).items():
        svg = draw("svg").decode()
        drawn[name] = svg[svg.index("<svg"):]
        write_atomic(out / f"{name}.svg", svg.replace("<svg ", '<svg style="background:#fff;color:#222" ', 1).encode())
        write_atomic(out / f"{name}.png", draw("png"))
    sections = [(title, kept) for title, parts in compose(e, drawn) if (kept := [p for p in parts if _holds(p)])]
    body = {"study": study.name, "description": study.description, "commits": commits(e),
            "data_hash": results.data_hash, "runs": {"done": len(e.found), "diverged": len(e.diverged),
                                                     "missing": len(e.missing)},
            "tables": {part.name: {"head": list(part.head), "rows": [list(row) for row in part.rows],
                                   "note": part.note}
                       for _, parts in sections for part in parts if isinstance(part, Table)}}
    write_atomic(out / "report.json", (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomic(out / "report.md", markdown(study, sections).encode())
    write_atomic(out / "report.html", page(study, sections).encode())
    return body


def compose(e: Evidence, drawn: dict[str, str]) -> list[Section]:
    """All sections; empty tables and figures that were not drawn are dropped by the caller."""
    def figure(name: str, caption: str) -> Figure:
        return Figure(name, caption, drawn.get(name, ""))

    ours = e.study.reference
    budgets = sorted({tokens for label in e.labels("main") for tokens in e.budgets(label)})
    return [
        ("State", [_state(e), tables.missing(e)]),
        ("The search", [search.candidates(e)]),
        ("The main comparison", [
            tables.main(e), figure("budgets", "Test loss after each budget; bars are standard deviations over seeds."),
            figure("curves", "Validation loss during each run.")]),
        ("The gap as tokens grow", [
            tables.gaps(e), figure("gaps", "Paired differences; bars are 95% intervals over seeds, where there are two "
                                           "or more."), tables.trends(e)]),
        ("Published orderings", [tables.claims(e)]),
        ("Ablations", [tables.ablations(e), figure("ablations", f"Each change to {ours}, with its 95% interval."),
            silence.controls(e)]),
        ("By domain and language", [tables.domains(e, tokens) for tokens in budgets]),
        ("Who is silent", [
            silence.sites(e), figure("silence", "Silent share of the sites, as initialised and after training."),
            silence.where(e)]),
        ("The one-bit gate", [silence.gate(e)]),
        ("What sparsity costs", [
            silence.sparsity_cost(e) if e.labels("sparsity") else "",
            figure("sparsity", "Perplexity against bytes read a token; the line joins the weights of the rate term.")]),
        ("The texts they write", [writing.variety(e), writing.against(e), *_samples(e)]),
        ("Operations and energy", list(silence.operations(e))),
        ("The sweep", [tables.sweep(e), tables.sweep(e, "warmup")]),
        ("How it was measured", [_protocol(e)]),
    ]


def _holds(part: Part) -> bool:
    """Whether a part has something to show."""
    if isinstance(part, Table):
        return bool(part.rows)
    return bool(part.svg) if isinstance(part, Figure) else bool(part)


def _state(e: Evidence) -> str:
    total = len(e.study.runs)
    text = f"Measured: {len(e.found)} of {total} runs"
    text += f"; diverged: {len(e.diverged)}" if e.diverged else ""
    return text + (f"; missing: {len(e.missing)}." if e.missing else ".")


def _samples(e: Evidence) -> list[Part]:
    """The first sample of each model that writes, in each language, at its largest budget."""
    parts: list[Part] = []
    for label in dict.fromkeys(run.label for run in e.study.runs if run.generate):
        written = [body for tokens in reversed(e.budgets(label)) for _, body in e.of(label, tokens)
                   if "generation" in body]
        samples = [s for s in written[0]["generation"]["samples"] if s["rule"] == "top-k"] if written else []
        parts += [f"{label}, seed {written[0]['seed']}, {tables.million(written[0]['tokens'])} tokens: "
                  f"“{_line(s['prompt'])}” goes on: “{_line(s['text'])}”" for s in samples]
    return parts


def _line(text: str) -> str:
    return " ".join(text.split())


def commits(e: Evidence) -> list[str]:
    """Commits of the code that made the results."""
    return sorted({body["commit"] for _, body in e.found})


def _protocol(e: Evidence) -> str:
    machines = sorted({body["machine"]["processor"] for _, body in e.found})
    read = e.found[0][1]["test"]["max_tokens"]
    return (
        f"Every figure comes from the result files of the runs. Losses and silence are those of {read:,} tokens of the "
        f"{e.study.split} split for each domain, the same windows for all models; silence at initialisation is that "
        "of the same seed before its first step. Intervals are Student's t at 95%: paired over seeds, paired over "
        "domains (each the mean over seeds), or, where they decide a verdict, over seeds with the spread pooled over "
        "all runs of the same budget and seeds. A verdict is undecided where its interval holds 0. No correction is "
        f"made for the number of comparisons. {_precisions(e)}Code: commit {', '.join(commits(e))}. Machines: "
        f"{', '.join(machines)}. Data: {e.found[0][1]['data_hash'][:12]}.")


def _precisions(e: Evidence) -> str:
    """A sentence where not all runs computed in the same precision."""
    counts = Counter(body.get("training", {}).get("precision", body["config"]["train"]["precision"])
                     for _, body in e.found)
    shares = ", ".join(f"{number} in {name}" for name, number in sorted(counts.items()))
    return f"The runs did not compute in one precision ({shares}): a difference may hold that too. " * (len(counts) > 1)


# Two forms.

def markdown(study: Study, sections: Sequence[Section]) -> str:
    """The report as markdown; figures are the PNG files beside it."""
    lines = [f"# {study.name}", "", *([study.description.strip(), ""] if study.description.strip() else [])]
    for title, parts in sections:
        lines += [f"## {title}", ""]
        for part in parts:
            if isinstance(part, Table):
                lines += [markdown_table(part.head, part.rows), *([part.note, ""] if part.note else [])]
            elif isinstance(part, Figure):
                lines += [f"![{part.caption}]({part.name}.png)", ""]
            else:
                lines += [part, ""]
    return "\n".join(lines).rstrip() + "\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, with a line end after each row."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def page(study: Study, sections: Sequence[Section]) -> str:
    """The report as one HTML page that needs no other file."""
    body = [f"<h1>{html.escape(study.name)}</h1><p>{html.escape(study.description.strip())}</p>"]
    for title, parts in sections:
        body.append(f"<h2>{html.escape(title)}</h2>")
        for part in parts:
            if isinstance(part, Table):
                body.append(_html_table(part))
            elif isinstance(part, Figure):
                body.append(f"<figure>{part.svg}<figcaption>{html.escape(part.caption)}</figcaption></figure>")
            else:
                body.append(f"<p>{html.escape(part)}</p>")
    wide = "body{max-width:76rem} .wide{overflow-x:auto} td,th{font-size:.85rem;white-space:nowrap}"
    return (f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>{html.escape(study.name)}</title><style>{STYLE}{wide}</style><body>"
            + "\n".join(body) + "</body></html>\n")


def _html_table(table: Table) -> str:
    def cell(text: str, tag: str) -> str:
        bold = text.startswith("**")
        inner = html.escape(text.strip("*"))
        return f"<{tag}>{f'<b>{inner}</b>' if bold else inner}</{tag}>"

    head = "".join(cell(h, "th") for h in table.head)
    rows = "".join("<tr>" + "".join(cell(c, "td") for c in row) + "</tr>" for row in table.rows)
    note = f"<p class=note>{html.escape(table.note)}</p>" if table.note else ""
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
