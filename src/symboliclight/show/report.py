"""One self-contained HTML page about a training comparison: figures, curves, sparsity, rasters, samples.

Everything shown comes from the result dictionary, the same that is written as JSON beside the page.
"""

import html
from pathlib import Path
from typing import Any

from symboliclight.core.atomic import write_atomic

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #0072b2; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line) }
table { border-collapse: collapse; width: 100% } td, th { padding: .3rem .6rem; border-bottom: 1px solid var(--line) }
td { text-align: right; font-variant-numeric: tabular-nums } th, td:first-child { text-align: left }
figure { margin: 1rem 0; padding: .5rem; overflow-x: auto; background: #fff; color: #222; border: 1px solid #8884 }
figure svg { max-width: 100%; height: auto } figcaption { color: #555; font-size: .9rem }
pre { white-space: pre-wrap; background: var(--soft); padding: .8rem; border-left: 3px solid var(--accent) }
.note { color: #888; font-size: .9rem }
"""


def write_report(path: Path, result: dict[str, Any]) -> None:
    """Write the page of a comparison.

    `result`: {title, lead, runs: [{label, parameters, eval}], rasters: [{caption, svg}], loss_svg,
    sparsity_svg, samples: [{label, prompt, text}], commit, machine, seed, data_hash}; `eval` as from `evaluate`.
    """
    curves, silence = (result[name][result[name].index("<svg"):] for name in ("loss_svg", "sparsity_svg"))
    parts = [
        f"<h1>{html.escape(result['title'])}</h1><p>{html.escape(result['lead'])}</p>",
        "<h2>The comparison</h2>" + _table(*comparison_rows(result["runs"])),
        "<h2>Learning</h2>" + _figure(curves, "Cross-entropy of training batches (thin) and of held-out "
                                      "text (dots) against tokens read. Lower is better."),
        "<h2>By domain</h2>" + domain_table(result["runs"]),
        "<h2>Who is silent</h2>" + _figure(
            silence, "Silent fraction of every spike site on held-out text. "
            "Sites differ, so no single number stands for the model."),
        "<h2>Spikes of a sentence</h2>" + "".join(_figure(r["svg"], r["caption"]) for r in result["rasters"]),
        "<h2>Samples</h2>" + "".join(_sample(s) for s in result["samples"]),
        f"<p class=note>{html.escape(_provenance(result))}</p>",
    ]
    body = "\n".join(parts)
    page = (f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>{html.escape(result['title'])}</title><style>{STYLE}</style><body>{body}</body></html>\n")
    write_atomic(path, page.encode())


def comparison_rows(runs: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of the comparison, one row a model."""
    head: tuple[str, ...] = ("model", "parameters", "perplexity", "bits/byte", "silent activations")
    rows: list[tuple[str, ...]] = []
    for run in runs:
        mean = run["eval"]["mean"]["token_weighted"]
        silent = ", ".join(f"{kind} {x:.1%}" for kind, x in site_groups(run["eval"]).items()) or "none: dense"
        rows.append((run["label"], f"{run['parameters']:,}", f"{mean['perplexity']:.1f}",
                     f"{mean['bits_per_byte']:.3f}", silent))
    return head, rows


def domain_table(runs: list[dict[str, Any]]) -> str:
    """HTML table of bits per byte: one row a domain, one column a model."""
    domains = list(runs[0]["eval"]["domains"])
    rows = [(d, *(f"{r['eval']['domains'][d]['bits_per_byte']:.3f}" for r in runs)) for d in domains]
    mean = ("mean over domains", *(f"{r['eval']['mean']['unweighted']['bits_per_byte']:.3f}" for r in runs))
    return _table(("bits per byte", *(r["label"] for r in runs)), [*rows, mean])


def site_groups(evaluation: dict[str, Any]) -> dict[str, float]:
    """Mean silent fraction of every kind of site, for a table; the chart shows each."""
    sites = evaluation["sparsity"]["sites"]
    groups: dict[str, list[float]] = {}
    kinds = {"encoder": "encoder", "blocks": "blocks", "ffn": "FFN", "mixer": "mixer"}
    for name, silent in sites.items():
        groups.setdefault(kinds[name.split(".")[0]], []).append(silent)
    return {name: sum(values) / len(values) for name, values in groups.items()}


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in r) + "</tr>" for r in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _sample(sample: dict[str, str]) -> str:
    return (f"<p><b>{html.escape(sample['label'])}</b></p>"
            f"<pre><b>{html.escape(sample['prompt'])}</b>{html.escape(sample['text'])}</pre>")


def _provenance(result: dict[str, Any]) -> str:
    m = result["machine"]
    return (f"Measured by `symboliclight demo`: commit {result['commit']}, seed {result['seed']}, "
            f"data {result['data_hash'][:12]}, {m['processor']}, {m['cores']} cores, torch {m.get('torch')}. "
            "All figures stand in result.json beside this page.")
