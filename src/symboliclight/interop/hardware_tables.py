"""Tables of `symboliclight neuro map`, for the command and for the pages. `result` is what `--out` writes."""

from typing import Any

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def kind_of(name: str) -> str:
    """A part's name without its layer: blocks.*.ffn.down."""
    return ".".join("*" if x.isdigit() else x for x in name.split("."))


def placed_table(found: dict[str, Any]) -> Table:
    """Spike-fed matrices on one target, layers of a kind together."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for p in found["placed"]:
        kinds.setdefault(kind_of(p["name"]), []).append(p)
    rows: list[tuple[str, ...]] = []
    for kind, each in kinds.items():
        p = each[0]
        fits = all(x["fits"] for x in each)
        rows.append((kind, str(len(each)), f"{p['fan_in']:,}", f"{p['neurons']:,}", f"{p['synapses']:,}",
                     f"{sum(x['cores'] for x in each):,}" if fits else "does not fit",
                     f"{sum(x['fill'] for x in each) / len(each):.0%}" if fits else ""))
    return ("matrix", "layers", "fan-in", "neurons", "synapses", "cores, all layers", "filled"), rows


def summary_table(result: dict[str, Any]) -> Table:
    """One row a target."""
    head: tuple[str, ...] = (
        "target", "weight bits", "spike-fed matrices that fit", "share of all matrix weights", "cores", "chips",
            "sums leave by")
    rows: list[tuple[str, ...]] = []
    for found in result["targets"]:
        t = found["totals"]
        rows.append((found["title"], str(found["limits"]["weight_bits"]["value"]), f"{t['fit']} of {t['matrices']}",
                     f"{t['share_of_weights']:.0%}", f"{t['cores']:,}", f"{t['chips']:,}", t["readout"] or "nothing"))
    return head, rows


def precision_table(result: dict[str, Any]) -> Table:
    """Perplexity with the mapped matrices at the precision of each target."""
    whole = result["perplexity"]["rows"]
    rows: list[tuple[str, ...]] = []
    for r in whole:
        each = [r["domains"][d] / exact - 1 for d, exact in whole[0]["domains"].items()]
        rows.append((r["weights"], str(r["bits"]), str(r["matrices"]), f"{r['perplexity']:.3f}", f"{r['change']:+.3%}",
                     f"{min(each):+.3%} to {max(each):+.3%}"))
    return ("weights of mapped matrices", "bits", "matrices", "perplexity", "change", "change by domain"), rows


TABLES = {"summary": summary_table, "precision": precision_table}
