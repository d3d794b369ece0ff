"""Energy of a token: operations alone, and with memory traffic. The two forms stand under different names throughout.

    op-only      Σ macs · mac_pj + acs · add_pj
    with memory  op-only + (weights + keys) · byte_pj(memory) + (state + activations + sums) · byte_pj(local memory)

A model's dense twin has the same matrices fed by continuous values: `spike_source="dense"`, no block spikes, GELU.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any

from symboliclight.core.config import ModelConfig, to_dict
from symboliclight.core.errors import InputError
from symboliclight.measure.energy.constants import ARITHMETIC, MEMORY, SOURCE, Arithmetic, Memory, local
from symboliclight.measure.energy.parts import (
    DATAFLOWS,
    Cost,
    Dataflow,
    Traffic,
    layout,
    operations,
    traffic,
    visible_keys,
)

MANY = 16  # sequences of the second column of break-even rates
CURVE = tuple(i / 20 for i in range(21))  # firing rates of the stored curves
NOT_COUNTED = ("instruction fetch and control", "leakage and idle power", "refresh of DRAM", "routing of spikes",
               "reading the list of active inputs", "gate bits", "intermediate values of element-wise parts",
               "activation functions, softmax and comparisons")


@dataclass(frozen=True)
class Subject:
    """A model to account for. `costs` a token by part; `rates` by site; `basis` says where both come from."""

    label: str
    config: ModelConfig
    costs: Mapping[str, Cost]
    rates: Mapping[str, float]
    context: int
    basis: str
    tokens: int = 0  # read while measuring; 0: nothing was


def subject(label: str, config: ModelConfig, rates: Mapping[str, float], context: int, basis: str) -> Subject:
    """A model without weights, at given firing rates (`parts.expand_rates`), in sequences of `context` tokens."""
    return Subject(label, config, operations(config, rates, visible_keys(config, context)), dict(rates), context, basis)


def from_report(label: str, config: ModelConfig, report: Mapping[str, Any], context: int) -> Subject:
    """A model as `operations.OperationMeter` measured it. Raises `InputError` if its parts are not those we know."""
    parts = report["parts"]
    unknown = sorted(set(parts) ^ set(layout(config)))
    if unknown:
        raise InputError(f"energy.parts.layout does not know part {unknown[0]} of this model; name it there")
    costs = {name: Cost(p["macs"], p["acs"], p["dense"]) for name, p in parts.items()}
    rates = {site: 1 - silent for site, silent in report["activation_sparsity_by_site"].items()}
    return Subject(label, config, costs, rates, context, "measured", report["tokens"])


def dense_twin(config: ModelConfig) -> ModelConfig | None:
    """The same model with continuous values for spikes; None for one that has no spikes."""
    twin = replace(config, spike_source="dense", block_spikes=False, ffn="gelu")
    return None if config.family == "gpt2" or twin == config else twin


def moved(s: Subject, a: Arithmetic, dataflow: Dataflow = "gather", batch: int = 1) -> dict[str, Traffic]:
    """Bytes a token of every part."""
    shapes = layout(s.config)
    return {name: traffic(shapes[name], cost, s.rates, a, dataflow, batch) for name, cost in s.costs.items()}


def op_only(costs: Iterable[Cost], a: Arithmetic) -> float:
    """Picojoules of the operations alone."""
    return sum(c.macs * a.mac_pj + c.acs * a.add_pj for c in costs)


def with_memory(s: Subject, a: Arithmetic, memory: Memory, dataflow: Dataflow = "gather", batch: int = 1) -> float:
    """Picojoules of operations and memory traffic."""
    near, total = local(memory).byte_pj, op_only(s.costs.values(), a)
    for t in moved(s, a, dataflow, batch).values():
        total += (t.weights + t.keys) * memory.byte_pj + (t.state + t.activations + t.sums) * near
    return total


def break_even(
    config: ModelConfig, context: int, a: Arithmetic, memory: Memory, dataflow: Dataflow, batch: int = 1
) -> float | None:
    """The common firing rate of all sites below which a token costs less than in the dense twin, with memory.

    1.0 if it does at every rate, 0.0 if at none; None for a model without spikes.
    """
    twin = dense_twin(config)
    if twin is None:
        return None
    limit = with_memory(subject("", twin, {}, context, ""), a, memory, batch=batch)

    def excess(rate: float) -> float:
        return with_memory(at_rate(config, rate, context), a, memory, dataflow, batch) - limit

    if excess(1.0) <= 0:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(20):  # energy grows with the rate; to one part in a million
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return low


def at_rate(config: ModelConfig, rate: float, context: int) -> Subject:
    """The model with the same firing rate at every site that feeds a matrix."""
    rates = {p.site: rate for p in layout(config).values() if p.site is not None}
    return subject("", config, rates, context, "")


def mean_rate(s: Subject) -> float | None:
    """Share of the weights of spike-fed matrices that a token meets; None where no matrix is fed by spikes."""
    fed = [(s.costs[name], s.rates[p.site]) for name, p in layout(s.config).items()
           if p.site is not None and (p.valued or not s.costs[name].macs)]
    whole = sum(c.dense for c, _ in fed)
    return sum(c.dense * rate for c, rate in fed) / whole if whole else None


def describe(s: Subject, sets: Iterable[str], batch: int = 1) -> dict[str, Any]:
    """All figures of one model as plain values: operations a token, bytes a token, microjoules a token.

    Parts are summed over layers; their bytes are those of the first set.
    """
    sets = list(sets)
    by_set = {name: moved(s, ARITHMETIC[name], batch=batch) for name in sets}
    return {
        "label": s.label, "family": s.config.family, "basis": s.basis, "config": to_dict(s.config),
        "context": s.context, "tokens_measured": s.tokens, "rates": dict(s.rates), "mean_rate": mean_rate(s),
        "operations": {f.name: sum(getattr(c, f.name) for c in s.costs.values()) for f in fields(Cost)},
        "bytes": {name: {f.name: sum(getattr(t, f.name) for t in found.values())
                         for f in fields(Traffic) if f.name != "sums"} for name, found in by_set.items()},
        "parts": _kinds(s, by_set[sets[0]]),
        "op_only_uj": {name: op_only(s.costs.values(), ARITHMETIC[name]) / 1e6 for name in sets},
        "with_memory_uj": {name: {m.name: {d: with_memory(s, ARITHMETIC[name], m, d, batch) / 1e6 for d in DATAFLOWS}
                                  for m in MEMORY.values()} for name in sets},
    }


def _kinds(s: Subject, found: Mapping[str, Traffic]) -> dict[str, dict[str, float]]:
    """Kind of part, layers summed -> macs, acs, dense, bytes."""
    kinds: dict[str, dict[str, float]] = {}
    for name, cost in s.costs.items():
        kind = kinds.setdefault(re.sub(r"\.\d+\.", ".*.", name), {})
        for key, value in (asdict(cost) | {"bytes": sum(asdict(found[name]).values())}).items():
            kind[key] = kind.get(key, 0) + value
    return kinds


def spiking_against_twin(s: Subject, sets: Iterable[str], batch: int = 1) -> dict[str, Any]:
    """Break-even rates by constants, memory, dataflow and batch (`batch` and `MANY`), and the curves of `batch`."""
    cases: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for name, memory, dataflow in product(sets, MEMORY.values(), DATAFLOWS):
        case = {"constants": name, "memory": memory.name, "dataflow": dataflow}
        for rows in dict.fromkeys((batch, MANY)):
            rate = break_even(s.config, s.context, ARITHMETIC[name], memory, dataflow, rows)
            cases.append(case | {"batch": rows, "rate": rate})
        if memory.name in ("sram-32kb", "dram"):
            curves.append(case | _curve(s, ARITHMETIC[name], memory, dataflow, batch))
    return {"model": s.label, "rate": mean_rate(s), "cases": cases, "curves": curves}


def _curve(s: Subject, a: Arithmetic, memory: Memory, dataflow: Dataflow, batch: int) -> dict[str, Any]:
    """Microjoules a token against the common firing rate, and of the dense twin."""
    twin = dense_twin(s.config)
    assert twin is not None
    points = [with_memory(at_rate(s.config, rate, s.context), a, memory, dataflow, batch) / 1e6 for rate in CURVE]
    dense = with_memory(subject("", twin, {}, s.context, ""), a, memory, batch=batch) / 1e6
    return {"rates": list(CURVE), "spiking_uj": points, "dense_uj": dense}


def constants() -> dict[str, Any]:
    """Every constant behind the figures, with its source."""
    return {"source": SOURCE, "arithmetic": {n: asdict(a) | {"mac_pj": a.mac_pj} for n, a in ARITHMETIC.items()},
            "memory_pj_per_byte": {n: m.byte_pj for n, m in MEMORY.items()}, "not_counted": list(NOT_COUNTED)}
