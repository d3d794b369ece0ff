"""Tables of what spikes, and of what a token costs.

Silent fractions are given by site; where sites of a kind stand together, as the mean over layers. Differences between
after and before training are paired by seed: the same weights, initialised and trained.
"""

from collections.abc import Callable
from typing import Any

from symboliclight.core.config import RunConfig, from_dict
from symboliclight.measure.energy.account import from_report, moved, op_only, with_memory
from symboliclight.measure.energy.constants import ARITHMETIC, MEMORY
from symboliclight.measure.operations import by_kind
from symboliclight.study.stats import against_zero, spread
from symboliclight.study.tables import Body, Evidence, Table, interval, loss, mean_sd, million, probability

KINDS = {"encoder": "encoder", "ffn": "FFN hidden units", "blocks": "block output"}  # kind of site -> its name
BYTES = ARITHMETIC["horowitz-45nm-float16"]  # two bytes a stored value


def kind_mean(sites: dict[str, float], kind: str) -> float | None:
    """Mean over the layers of a kind of site."""
    values = [x for site, x in sites.items() if site.split(".")[0] == kind]
    return sum(values) / len(values) if values else None


def deepest(e: Evidence) -> int | None:
    """The largest budget at which the reference has two seeds, else the largest that it has."""
    budgets = e.budgets(e.study.reference)
    several = [tokens for tokens in budgets if len(e.of(e.study.reference, tokens)) > 1]
    return max(several or budgets, default=None)


def sites(e: Evidence) -> Table:
    """Silent fraction of every site of the reference, as initialised and after each budget."""
    found = {tokens: e.of(e.study.reference, tokens) for tokens in e.budgets(e.study.reference)}
    every = [body for pairs in found.values() for _, body in pairs]
    start = {body["seed"]: body["sparsity"]["start"]["sites"] for body in every}
    head: list[str] = ["site", "initialised"]
    for tokens in found:
        head += [f"after {million(tokens)}", "change [95%]", "p"]
    rows = []
    for site in every[0]["sparsity"]["start"]["sites"] if every else ():
        row = [site, mean_sd(spread([s[site] for s in start.values()]), 2, percent=True)]
        for pairs in found.values():
            after = [body["sparsity"]["trained"]["sites"][site] for _, body in pairs]
            moved_by = against_zero([x - body["sparsity"]["start"]["sites"][site]
                                     for x, (_, body) in zip(after, pairs, strict=True)])
            row += [mean_sd(spread(after), 2, percent=True), interval(moved_by, 2, percent=True), probability(moved_by)]
        rows.append(row)
    return Table("sites", head, rows, f"Silent share of (token, unit) pairs on the {e.study.split} split, mean ± "
                 "standard deviation over seeds; change in percentage points, paired by seed.")


def where(e: Evidence) -> Table:
    """Silence of the reference by domain, language and position, as initialised and after its deepest budget."""
    tokens = deepest(e)
    bodies = [body for _, body in e.of(e.study.reference, tokens)] if tokens else []
    head = ["where", *(f"{name}, {when}" for name in KINDS.values() for when in ("initialised", "trained"))]
    rows = []
    for name, pick in _places(bodies[0]) if bodies else ():
        cells = []
        for kind in KINDS:
            for when in ("start", "trained"):
                values = [kind_mean(sites, kind) for b in bodies if (sites := pick(b["sparsity"][when])) is not None]
                known = [x for x in values if x is not None]
                cells.append(mean_sd(spread(known), 2, percent=True) if known else "")
        rows.append((name, *cells))
    return Table("where", head, rows, f"After {million(tokens)} tokens. " if tokens else "")


def _places(body: Body) -> list[tuple[str, Callable[[Any], dict[str, float] | None]]]:
    s = body["sparsity"]["trained"]
    places: list[tuple[str, Callable[[Any], dict[str, float] | None]]] = [
        (name, lambda x, name=name: x["domains"].get(name)) for name in s["domains"]]  # type: ignore[misc]
    places += [(f"language {name}", lambda x, name=name: x["languages"].get(name))  # type: ignore[misc]
               for name in s["languages"]]
    for i, bucket in enumerate(s["positions"]):
        first, last = bucket["from"], bucket["to"] - 1
        label = f"position {first}" if first == last else f"positions {first} to {last}"
        places.append((label, lambda x, i=i: x["positions"][i]["sites"]  # type: ignore[misc]
                       if i < len(x["positions"]) else None))
    return places


def gate(e: Evidence) -> Table:
    """Share of tokens that close the one-bit gate, by layer."""
    rows, layers = [], 0
    for label in dict.fromkeys(run.label for run in e.study.runs):
        for tokens in e.budgets(label):
            shares = [[1 - x for x in body["sparsity"]["trained"]["gate_open"].values()]
                      for _, body in e.of(label, tokens) if body["sparsity"]["trained"]["gate_open"]]
            if shares:
                layers = max(layers, len(shares[0]))
                read = sum(d["tokens"] for _, b in e.of(label, tokens) for d in b["test"]["domains"].values())
                rows.append([label, million(tokens), f"{read:,}",
                             *(mean_sd(spread(column), 3, percent=True) for column in zip(*shares, strict=True))])
    return Table("gate", ("model", "tokens", "tokens read", *(f"layer {i}" for i in range(layers))), rows,
                 "Share of test tokens that no unit of the gate's site marks with a spike, so that the gate closes.")


def controls(e: Evidence) -> Table:
    """The encoder's rate of the reference and of the models that stand in for its neuron, and its threshold."""
    rows = []
    for label in dict.fromkeys(run.label for run in e.study.runs):
        for tokens in e.budgets(label):
            found = e.of(label, tokens)
            model = found[0][0].config.model
            if label != e.study.reference and model.spike_source not in ("topk", "threshold"):
                continue
            sites = [b["sparsity"]["trained"]["sites"] for _, b in found]
            if not all("encoder" in site for site in sites):  # a dense reference
                continue
            levels = [b["controls"]["encoder_threshold"] for _, b in found if b.get("controls")]
            given = {"topk": f"topk_rate {model.topk_rate:g}", "threshold": f"threshold {model.encoder_threshold}"}
            rows.append((label, million(tokens), given.get(model.spike_source, ""),
                         mean_sd(spread([1 - site["encoder"] for site in sites]), 2, percent=True),
                         mean_sd(spread(levels)) if levels else "", mean_sd(spread([loss(b) for _, b in found]))))
    return Table("controls", ("model", "tokens", "set to", "encoder's rate after training",
                              "threshold of the same rate", "nats/token"), rows,
                 "The rate is spikes a unit and token; the threshold is the level that so large a share of the trained "
                 "model's input currents reaches.")


def traffic(body: Body) -> dict[str, float]:
    """Of a token, from its measured operations: bytes of weights and keys at two bytes a value, and picojoules."""
    config = from_dict(RunConfig, body["config"])
    s = from_report(body["label"], config.model, body["operations"], config.data.seq_len)
    parts = moved(s, BYTES).values()
    return {"bytes": sum(t.weights + t.keys for t in parts), "op_only": op_only(s.costs.values(), BYTES),
            "with_memory": with_memory(s, BYTES, MEMORY["dram"])}


def sparsity_cost(e: Evidence) -> Table:
    """What the rate term buys: loss, silence and bytes a token; the main models of the same budget beside it."""
    rows = []
    for label, tokens in sparsity_points(e):
        found = e.of(label, tokens)
        silent = [body["sparsity"]["trained"]["sites"] for _, body in found]
        rates = [mean_sd(spread([x for s in silent if (x := kind_mean(s, kind)) is not None]), 1, percent=True)
                 if kind_mean(silent[0], kind) is not None else "dense" for kind in KINDS]
        rows.append((label, f"{found[0][0].config.train.rate_weight:g}", million(tokens),
                     mean_sd(spread([loss(b) for _, b in found])),
                     mean_sd(spread([b["test"]["mean"]["token_weighted"]["perplexity"] for _, b in found]), 1), *rates,
                     mean_sd(spread([traffic(b)["bytes"] / 1e6 for _, b in found]))))
    return Table("sparsity", ("model", "rate_weight", "tokens", "nats/token", "perplexity",
                              *(f"{name} silent" for name in KINDS.values()), "MB read a token"), rows,
                 "Silence as the mean over layers. Bytes read: the weights that the active inputs of a token meet and "
                 "the keys and values that it sees, at two bytes each, counted from the measured operations.")


def sparsity_points(e: Evidence) -> list[tuple[str, int]]:
    """(label, budget) of the sparsity group and of the main models at its budgets."""
    budgets = sorted({run.tokens for run in e.study.runs if run.group == "sparsity"})
    labels = [*e.labels("main"), *e.labels("sparsity")]
    return [(label, tokens) for tokens in budgets for label in labels if e.of(label, tokens)]


def operations(e: Evidence) -> list[Table]:
    """Operations a token by kind of part, and totals with energy, of the main models after the deepest budget."""
    tokens = deepest(e)
    labels = [label for label in e.labels("main") if tokens and e.of(label, tokens)]
    totals, tables = [], []
    for label in labels:
        bodies = [body for _, body in e.of(label, tokens or 0)]
        kinds = [by_kind(body["operations"]) for body in bodies]
        rows = [(name, *(mean_sd(spread([k[name][key] for k in kinds]), 0) for key in ("macs", "acs", "dense")))
                for name in kinds[0]]
        tables.append(Table(f"operations-{label}", (f"{label}: part", "MAC", "AC", "dense"), rows))
        costs, sums = [traffic(body) for body in bodies], [body["operations"]["per_token"] for body in bodies]
        totals.append((label, *(mean_sd(spread([s[key] / 1e6 for s in sums])) for key in ("macs", "acs", "dense")),
                       mean_sd(spread([c["bytes"] / 1e6 for c in costs])),
                       *(mean_sd(spread([c[key] / 1e6 for c in costs]), 2) for key in ("op_only", "with_memory"))))
    head = ("model", "M MAC", "M AC", "M dense", "MB read", "µJ, operations only", "µJ, with memory in DRAM")
    note = (f"A token of the {e.study.split} split after {million(tokens)} tokens of training. " if tokens else "") + (
        "Energy by the 45 nm constants of Horowitz (ISSCC 2014) at 16 bits: computed, not measured. `symboliclight "
        "energy` gives other precisions, memories and break-even rates.")
    return [Table("operations", head, totals, note), *tables]
