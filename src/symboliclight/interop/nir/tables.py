"""Tables of `symboliclight neuro run` and `neuro readers`, for the pages. `result` is what their `--out` writes."""

from typing import Any

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def exact_table(result: dict[str, Any]) -> Table:
    """Spike decisions that differ from the torch model's, by text."""
    head = ("text", "tokens", "spike decisions", "spikes", "differ from float64", "differ from float32", "nearest",
            "clamp acts")
    rows: list[tuple[str, ...]] = [(r["text"], f"{r['tokens']:,}", f"{r['decisions']:,}", f"{r['events']:,}",
             f"**{r['differ']['float64']['spikes']:,}**", f"{r['differ']['float32']['spikes']:,}{_first(r)}",
             f"{r['margin']:.1e}", f"{r['clamp_active_share']:.2%}") for r in result["texts"]]
    return head, rows


def _first(row: dict[str, Any]) -> str:
    where = row["differ"]["float32"].get("first")
    return "" if where is None else f", from token {where['token']} on, {where['margin']:.1e} from a threshold"


def work_table(result: dict[str, Any]) -> Table:
    """Counts of a token, by text."""
    head = ("text", "events", "graded inputs", "accumulates", "multiply-accumulates", "weights read", "states read",
            "read by host nodes")
    names = ("events", "graded", "accumulates", "multiply_accumulates", "weight_reads", "state_reads", "host_reads")
    return head, [(r["text"], *(f"{r[name] / r['tokens']:,.0f}" for name in names)) for r in result["texts"]]


def support_table(result: dict[str, Any]) -> Table:
    """One row a reader and kind of node; layers together."""
    head = ("reader", "node", "held as", "spike decisions", "differ", "as loaded", "at the boundary",
            "without the dialect", "why")
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["readers"]:
        kinds.setdefault((row["reader"], row["kind"]), []).append(row)
    rows = [_row(result["versions"][reader], reader, kind, found) for (reader, kind), found in kinds.items()]
    free = result["unclamped"]
    rows.append(("any", "LIF beside the model", "LIF", f"{free['values']:,}", f"{free['differ']:,}", "", "", "",
                 "NIR's LIF has no lower bound: what the model's clamp would have changed"))
    return head, rows


def _row(version: str, reader: str, kind: str, found: list[dict[str, Any]]) -> tuple[str, ...]:
    front = (f"{reader} {version}", kind, found[0]["held_as"])
    if "differ" not in found[0]:
        largest = max(row["largest_difference"] for row in found)
        return (*front, "none", f"values by {largest:.0e}", "", "", "", found[0]["cause"])
    plain = [row["plain"] for row in found]
    said = next((p for p in plain if isinstance(p, str)), None)
    edge = [row["boundary"] for row in found if "boundary" in row]
    return (*front, f"{sum(row['values'] for row in found):,}", f"**{sum(row['differ'] for row in found):,}**",
            f"{sum(row['as_loaded'] for row in found):,}", f"{sum(edge):,}" if edge else "",
            f"{sum(plain):,} differ" if said is None else "not read", found[0]["cause"])


def refused_table(result: dict[str, Any]) -> Table:
    """Parts that no dialect of a reader holds, one row a kind of part."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for row in result["refused"]:
        kind = ".".join("*" if x.isdigit() else x for x in row["part"].split("."))
        reason = row["reason"].split(": ", 1)[1].split(";")[0]
        kinds.setdefault((kind, reason), []).append(row["reader"])
    return ("part", "readers", "its node"), [
        (kind, ", ".join(dict.fromkeys(readers)), reason) for (kind, reason), readers in kinds.items()]


TABLES = {"exact": exact_table, "work": work_table, "readers": support_table, "refused": refused_table}
