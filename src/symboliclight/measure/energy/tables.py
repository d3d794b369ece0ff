"""Tables of an energy result (what `symboliclight energy --out` writes), for the command and for the pages."""

from collections.abc import Callable
from typing import Any

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
SHORT = "horowitz-45nm-"


def models(result: dict[str, Any]) -> Table:
    """Operations and bytes a token; bytes at the widest precision of the result."""
    name = next(iter(result["models"][0]["bytes"]))
    head: tuple[str, ...] = ("model", "basis", "context", "MAC", "AC", "spike-fed weights met",
                             f"weights, MB ({_precision(name)})", "keys, MB", "other, MB")
    rows: list[tuple[str, ...]] = []
    for m in result["models"]:
        b, done = m["bytes"][name], m["operations"]
        rows.append((m["label"], m["basis"], str(m["context"]), _count(done["macs"]), _count(done["acs"]),
                     "" if m["mean_rate"] is None else f"{m['mean_rate']:.1%}", f"{b['weights'] / 1e6:.2f}",
                     f"{b['keys'] / 1e6:.3f}", f"{(b['state'] + b['activations']) / 1e6:.3f}"))
    return head, rows


def op_only(result: dict[str, Any]) -> Table:
    """Microjoules a token of the operations alone."""
    sets = list(result["models"][0]["op_only_uj"])
    rows = [(m["label"], *(f"{m['op_only_uj'][name]:,.3g}" for name in sets)) for m in result["models"]]
    return ("op-only, µJ a token", *map(_precision, sets)), rows


def with_memory(result: dict[str, Any]) -> Table:
    """Microjoules a token of operations and traffic, by precision and by where the weights lie; dataflow gather."""
    places = [(name, memory) for name in result["models"][0]["with_memory_uj"]
              for memory in ("sram-32kb", "sram-1mb", "dram")]
    rows = [(m["label"], *(_count(m["with_memory_uj"][name][memory]["gather"]) for name, memory in places))
            for m in result["models"]]
    return ("with memory, µJ a token", *(f"{_precision(name)}, {memory}" for name, memory in places)), rows


def break_even(result: dict[str, Any]) -> Table:
    """Firing rates below which spiking costs less than the dense twin, of the first spiking model."""
    cases: dict[tuple[str, str], dict[tuple[str, int], float]] = {}
    for c in result["break_even"][0]["cases"]:
        cases.setdefault((c["constants"], c["memory"]), {})[c["dataflow"], c["batch"]] = c["rate"]
    columns = list(next(iter(cases.values())))
    rows = [(_precision(name), memory, *(_rate(found[c]) for c in columns)) for (name, memory), found in cases.items()]
    return ("precision", "weights in", *(f"{dataflow}, batch {batch}" for dataflow, batch in columns)), rows


def parts(result: dict[str, Any]) -> Table:
    """The first model by kind of part, layers together; bytes at the widest precision."""
    m = result["models"][0]
    name = next(iter(m["bytes"]))
    rows = [(kind, *(_count(found[key]) for key in ("macs", "acs", "bytes"))) for kind, found in m["parts"].items()]
    return (f"{m['label']}, a token", "MAC", "AC", f"bytes ({_precision(name)})"), rows


TABLES: dict[str, Callable[[dict[str, Any]], Table]] = {
    "models": models, "op-only": op_only, "with-memory": with_memory, "break-even": break_even, "parts": parts}


def _precision(name: str) -> str:
    return name.removeprefix(SHORT)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def _rate(value: float) -> str:
    return "any rate" if value == 1 else f"{value:.1%}"
