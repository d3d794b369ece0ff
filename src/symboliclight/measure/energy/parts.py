"""What each part of a model is made of, what it computes and what it moves a token.

`layout` names the parts as `operations.OperationMeter` does. `operations` says what the meter would count at given
firing rates, so that a model needs no weights; `tests/test_energy.py` holds both to each other. `traffic` adds the
values that a token moves; see docs/how-to/neuromorphic.md for the assumptions.

Legend: B sequences that share one reading of the weights, D d_model, V vocab_size, H heads, M inputs, N outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from symboliclight.core.config import ModelConfig
from symboliclight.core.errors import InputError
from symboliclight.measure.energy.constants import Arithmetic

Kind = Literal["linear", "lookup", "norm", "membrane", "decay", "attention", "elementwise", "convolution"]
Dataflow = Literal["gather", "scatter"]
DATAFLOWS: tuple[Dataflow, ...] = ("gather", "scatter")


@dataclass(frozen=True)
class Shape:
    """One part. Sizes are values a token; `site` is the spike site that feeds it, None for a dense input."""

    kind: Kind
    inputs: int
    outputs: int
    site: str | None = None
    code: str = "binary"  # of the spikes of that site
    macs: int = 0  # of parts other than linear maps and attention
    acs: int = 0
    extra: int = 0  # stored values read beside the matrix: biases, factors of a head

    @property
    def valued(self) -> bool:
        """Whether the spikes that feed it carry a value, so that an active input costs products."""
        return self.site is not None and self.code in ("graded", "shifted", "squared")


@dataclass(frozen=True)
class Cost:
    """Operations a token."""

    macs: float = 0.0
    acs: float = 0.0
    dense: float = 0.0


@dataclass(frozen=True)
class Traffic:
    """Bytes a token. Weights, keys and values come from the named memory, the rest from local memory."""

    weights: float = 0.0
    keys: float = 0.0
    state: float = 0.0  # membranes and decay memories, read and written
    activations: float = 0.0  # inputs and outputs of linear maps; a spike is one bit, and its value if it has one
    sums: float = 0.0  # accumulators read and written for each synaptic operation, of dataflow "scatter"


def layout(config: ModelConfig) -> dict[str, Shape]:
    """Parts of one token, in forward order."""
    return _gpt2(config) if config.family == "gpt2" else _symboliclight(config)


def _norm(D: int) -> Shape:
    return Shape("norm", D, D, macs=3 * D, acs=2 * D, extra=2 * D)


def _stream_norm(c: ModelConfig, spikes: bool) -> Shape:
    """The norm of the stream, and the thresholds of what spikes right after it."""
    D = c.d_model
    learned = D if spikes and c.block_spikes and c.learn_neuron == "all" else 0
    both = _norm(D) if c.norm == "layer" else Shape("norm", D, D, acs=D, extra=D)
    return replace(both, extra=both.extra + learned)


def _symboliclight(c: ModelConfig) -> dict[str, Shape]:
    D, F, V = c.d_model, c.d_ff, c.vocab_size
    parts = {"encoder.embedding": Shape("lookup", 1, D, extra=D), "encoder.norm": _norm(D)}
    if c.spike_source == "lif":
        parts["encoder.neuron"] = Shape("membrane", D, D, macs=D, extra=2 * D if c.learn_neuron else 0)
    before = None if c.spike_source == "dense" else "encoder"
    for i in range(c.n_layers):
        parts |= _mixer(c, f"blocks.{i}.mixer", before, c.stream_code if i else c.encoder_code)
        name, hidden = f"blocks.{i}.ffn", f"ffn.{i}" if c.ffn == "spike" else None
        middle = f"mixer.{i}" if c.spike_fed and c.block_spikes else None
        thresholds = F if hidden and c.learn_neuron == "all" else 0
        parts |= {f"{name}.up": Shape("linear", D, F, middle, c.stream_code, extra=thresholds),
                  f"{name}.down": Shape("linear", F, D, hidden, c.ffn_code),
                  f"{name}.residual": Shape("elementwise", D, D, acs=D),
                  f"{name}.norm": _stream_norm(c, i < c.n_layers - 1)}
        before = f"blocks.{i}" if c.block_spikes else None
    parts["head.out"] = Shape("linear", D, V)
    if c.prior == "dynamic":
        factor = int(c.learn_prior_weight)
        parts |= {"head.prior_down": Shape("linear", D, D // 4), "head.prior_up": Shape("linear", D // 4, V),
                  "head.prior": Shape("elementwise", V, V, macs=D // 4, acs=V, extra=factor)}
    elif c.prior == "static":
        parts["head.prior"] = Shape("elementwise", V, V, acs=V, extra=V + int(c.learn_prior_weight))
    return parts


def _mixer(c: ModelConfig, name: str, site: str | None, code: str) -> dict[str, Shape]:
    D, parts = c.d_model, {}
    if c.paths != "attention":
        rates = D if c.decay == "channel" else c.n_heads
        parts = {f"{name}.tcam": Shape("linear", D, D, site, code),
                 f"{name}.decay": Shape("decay", D, D, macs=2 * D, extra=rates)}
        if c.decay == "input":
            parts[f"{name}.decay_gate"] = Shape("linear", D, c.n_heads, site, code)
    if c.paths != "decay":
        parts |= {f"{name}.{x}": Shape("linear", D, D, site if c.spike_fed else None, code) for x in "qkv"}
        parts |= {f"{name}.rope": Shape("elementwise", 2 * D, 2 * D, macs=4 * D),
                  f"{name}.attention": Shape("attention", D, D)}
    if c.paths == "both":
        parts[f"{name}.fuse"] = Shape("elementwise", 2 * D, D, macs=D, acs=D, extra=1)
    if c.conv:
        written = {"both": "ukv", "decay": "u", "attention": "kv"}[c.paths]
        parts |= {f"{name}.conv_{x}": Shape("convolution", D, D, macs=c.conv * D, extra=c.conv * D) for x in written}
    return parts | {f"{name}.out": Shape("linear", D, D), f"{name}.residual": Shape("elementwise", D, D, acs=D),
                    f"{name}.norm": _stream_norm(c, c.spike_fed)}


def _gpt2(c: ModelConfig) -> dict[str, Shape]:
    D, F, V = c.d_model, c.d_ff, c.vocab_size
    parts = {"transformer.wte": Shape("lookup", 1, D, extra=D),
             "transformer.wpe": Shape("lookup", 1, D, acs=D, extra=D)}
    for i in range(c.n_layers):
        name = f"transformer.h.{i}"
        parts |= {f"{name}.ln_1": _norm(D), f"{name}.attn.c_attn": Shape("linear", D, 3 * D, extra=3 * D),
                  f"{name}.attn.attention": Shape("attention", D, D),
                  f"{name}.attn.c_proj": Shape("linear", D, D, extra=D), f"{name}.ln_2": _norm(D),
                  f"{name}.mlp.c_fc": Shape("linear", D, F, extra=F),
                  f"{name}.mlp.c_proj": Shape("linear", F, D, extra=D),
                  f"{name}.residual": Shape("elementwise", D, D, acs=2 * D)}
    return parts | {"transformer.ln_f": _norm(D), "head": Shape("linear", D, V)}


def _rates_of(config: ModelConfig) -> str:
    """What --rates must name: encoder=R,ffn=R,blocks=R."""
    kinds = dict.fromkeys(p.site.split(".")[0] for p in layout(config).values() if p.site)
    return ",".join(f"{kind}=R" for kind in kinds)


def spike_fed_share(config: ModelConfig) -> float:
    """Share of the multiply-accumulates of all matrices, zeros counted, whose input is spikes."""
    linear = [p for p in layout(config).values() if p.kind == "linear"]
    return sum(p.inputs * p.outputs for p in linear if p.site) / sum(p.inputs * p.outputs for p in linear)


def visible_keys(config: ModelConfig, context: int) -> float:
    """Mean keys that a query sees with every gate open, over the first `context` tokens of a sequence."""
    if config.family == "gpt2":
        return (context + 1) / 2
    W, A = config.window, config.n_anchors
    return sum(min(i, W) + 1 + min(A, max(i - W, 0)) for i in range(context)) / context


def operations(config: ModelConfig, rates: Mapping[str, float], keys: float) -> dict[str, Cost]:
    """Operations a token of each part: `rates` of every spike site that feeds a matrix, mean `keys` seen a query.

    A spike with a value costs products. An integer one is counted as the most binary events that it can unfold into.

    Raises `InputError` if a site has no rate.
    """
    found = {}
    for name, p in layout(config).items():
        if p.kind == "attention":
            found[name] = Cost(macs=2 * p.inputs * keys, dense=2 * p.inputs * keys)
        elif p.kind != "linear":
            found[name] = Cost(p.macs, p.acs, p.macs + p.acs)
        elif p.site is None:
            found[name] = Cost(macs=p.inputs * p.outputs, dense=p.inputs * p.outputs)
        elif p.site in rates:
            whole = p.inputs * p.outputs
            met, events = rates[p.site] * whole, config.spike_levels if p.code == "integer" else 1
            found[name] = Cost(macs=met, dense=whole) if p.valued else Cost(acs=met * events, dense=whole)
        else:
            raise InputError(f"no firing rate for site {p.site}; give --rates {_rates_of(config)}")
    return found


def traffic(
    part: Shape, cost: Cost, rates: Mapping[str, float], a: Arithmetic, dataflow: Dataflow = "gather", batch: int = 1
) -> Traffic:
    """Bytes a token of one part.

    gather: the active rows of a spike-fed matrix are summed in registers. scatter: each synaptic operation reads and
    writes its accumulator in local memory, as where events are served one by one. `batch` sequences share one
    reading of the weights; a row of a spike-fed matrix is read if any of them spikes there, spikes being independent.
    """
    stored = part.extra * a.value_bytes / (1 if part.kind == "lookup" else batch)
    if part.kind == "linear":
        outputs = part.outputs * a.value_bytes
        if part.site is None or (cost.macs and not part.valued):
            weights = part.inputs * part.outputs * a.value_bytes / batch
            return Traffic(stored + weights, activations=part.inputs * a.value_bytes + outputs)
        rate = rates[part.site]
        read = part.inputs * part.outputs * (1 - (1 - rate) ** batch) / batch
        sums = 2 * (cost.acs + cost.macs) * a.sum_bytes if dataflow == "scatter" else 0.0
        values = rate * part.inputs * a.value_bytes if part.valued or part.code == "integer" else 0.0
        return Traffic(stored + read * a.value_bytes, activations=part.inputs / 8 + values + outputs, sums=sums)
    if part.kind == "attention":  # every product reads one element; the token adds its own key and value
        return Traffic(keys=(cost.macs + 2 * part.inputs) * a.value_bytes)
    if part.kind == "convolution":  # its last inputs are read and one is written
        return Traffic(stored, state=part.macs * a.value_bytes)
    if part.kind in ("membrane", "decay"):
        return Traffic(stored, state=2 * part.inputs * a.sum_bytes)
    return Traffic(stored)


def expand_rates(config: ModelConfig, rates: Mapping[str, float]) -> dict[str, float]:
    """Rates by site from rates by site or kind (`encoder`, `ffn`, `blocks`), sites before kinds.

    Raises `InputError` for a rate outside [0, 1], a name that the model has not, or a site without a rate.
    """
    sites = [p.site for p in layout(config).values() if p.site is not None]
    known = set(sites) | {site.split(".")[0] for site in sites} | {f"blocks.{config.n_layers - 1}"}
    for name, rate in rates.items():
        if name not in known:
            raise InputError(f"no spike site {name!r} feeds a matrix of this model; it has: "
                             f"{', '.join(dict.fromkeys(s.split('.')[0] for s in sites)) or 'none'}")
        if not 0 <= rate <= 1:
            raise InputError(f"the firing rate of {name} must be in [0, 1], got {rate}")
    found = {site: rates.get(site, rates.get(site.split(".")[0])) for site in sites}
    missing = [site for site, rate in found.items() if rate is None]
    if missing:
        raise InputError(f"no firing rate for {missing[0]}; give --rates {_rates_of(config)}")
    return {site: rate for site, rate in found.items() if rate is not None}
