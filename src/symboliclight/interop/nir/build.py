"""A model's tensors as parts that NIR holds and host nodes that it does not (DESIGN section 1).

The reading of NIR's equations, stated in every graph: forward Euler with step dt,
    LIF  v <- v + dt/tau (v_leak - v + R I);  z = 1[v > v_threshold];  v <- v_reset where z = 1
    LI   v <- v + dt/tau (v_leak - v + R I)
so a leak λ is tau = dt / (1 - λ), and R = tau / dt adds the input as it is. Neuron parameters and scales are float64,
matrices and thresholds float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import nir
import numpy as np

from symboliclight.core.config import ModelConfig, to_dict
from symboliclight.core.errors import InputError
from symboliclight.interop.nir.files import STEP_SECONDS, Export, Host, Part, Site, below
from symboliclight.interop.nir.limits import refuse

UNITS = {
    "dt": STEP_SECONDS, "time_unit": "s", "step": "one token", "potential_unit": "dimensionless",
    "integration": "forward Euler: v <- v + dt/tau (v_leak - v + R I), then threshold, then reset",
    "comparison": "v > threshold in float32; thresholds are the float32 next below the model's own, which fires at "
                  "v >= theta. In a wider format compare with nextafter(threshold, inf) and >=",
}
NORM_EPS = 1e-5


def build(config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> Export:
    """Parts and host nodes of a checkpoint's float32 tensors. Raises `InputError` naming what has no form here."""
    refuse(config)
    builder = _Builder(config, tensors)
    builder.encoder()
    for i in range(config.n_layers):
        builder.mixer(i)
        builder.ffn(i)
    builder.head()
    about = {"dialect": "nir", "units": UNITS, "model": to_dict(config)}
    return Export(builder.steps, builder.sites, about)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


@dataclass
class _Builder:
    """Adds steps in order; `stream` and `spikes` are the signals that the next part reads."""

    c: ModelConfig
    tensors: Mapping[str, np.ndarray]
    steps: list[Part | Host] = field(default_factory=list)
    sites: dict[str, Site] = field(default_factory=dict)
    stream: str = "current"
    spikes: str = "spikes"

    def encoder(self) -> None:
        """The table of input currents, the neuron, and its clamp if that can ever act."""
        c, D, t = self.c, self.c.d_model, self.tensors
        table = _layer_norm_rows(t["encoder.embedding.weight"], t["encoder.norm.weight"], t["encoder.norm.bias"])
        self.steps.append(Host("encoder.table", "table", "current = rows[token], rows = LayerNorm(E[token]) in float32",
                               {"token": "token"}, {"output": "current"}, {}, {"rows": table}))
        start = c.v_threshold if c.encoder_threshold is None else c.encoder_threshold
        theta = t.get("encoder.neuron.threshold", np.full(D, start, np.float32))
        if c.spike_source == "threshold":
            node: nir.NIRNode = nir.Threshold(below(theta))
        else:
            leak = t.get("encoder.neuron.leak", np.full(D, c.leak, np.float32)).astype(np.float64)
            if (leak >= 1).any():
                raise InputError("node encoder.lif: a leak of 1 or more has no time constant; train with model.leak "
                                 "below 1")
            node = _lif(leak, theta)
            reach = np.abs(table).max(0) / (1 - np.abs(leak))
            if c.v_clamp < float(np.max(np.where(np.abs(leak) < 1, reach, np.inf))):
                self.steps.append(Host("encoder.clamp", "clamp", "v <- max(min(v, high), low) before the comparison",
                                       parameters={"node": "encoder.lif", "low": -c.v_clamp, "high": c.v_clamp}))
        self._part("encoder", {"encoder.lif": node}, [("input", "encoder.lif", "output")],
                   {"input": ("current", D)}, {"output": ("spikes", D)})
        self.sites["encoder"] = Site("encoder", "encoder.lif")

    def mixer(self, i: int) -> None:
        """Both memories, their mix, the matrix after it, the residual sum and its norm."""
        c, D, name, t = self.c, self.c.d_model, f"blocks.{i}.mixer", self.tensors
        nodes: dict[str, nir.NIRNode] = {f"{name}.out": self._matrix(f"{name}.out.weight", f"{name}.norm.bias")}
        chains: list[tuple[str, ...]] = [("stream", "output"), (f"{name}.out", "output")]
        reads = {"stream": (self.stream, D)}
        both = c.paths == "both"
        if c.paths != "decay":
            self._attention(i)
            reads["attention"] = (f"{name}.attention", D)
            chains.append(("attention", *([f"{name}.mix"] if both else []), f"{name}.out"))
        if c.paths != "attention":
            self._memory(i)
            reads["memory"] = (f"blocks.{i}.memory", D)
            chains.append(("memory", *([f"{name}.keep"] if both else []), f"{name}.out"))
        if both:
            share = np.full(D, _sigmoid(t[f"{name}.attn_gate"]))
            nodes |= {f"{name}.mix": nir.Scale(share), f"{name}.keep": nir.Scale(1 - share)}
        self._part(name, nodes, chains, reads, {"output": (f"{name}.sum", D)})
        self._norm(name)

    def _memory(self, i: int) -> None:
        """The decay path: spikes, matrix, leaky integrators."""
        name, D = f"blocks.{i}.mixer", self.c.d_model
        rate = _sigmoid(np.repeat(self.tensors[f"{name}.decay_raw"], self.c.head_dim))
        self._part(f"blocks.{i}.memory",
                   {f"{name}.tcam": nir.Linear(self.tensors[f"{name}.tcam.weight"]), f"{name}.decay": _li(rate)},
                   [("input", f"{name}.tcam", f"{name}.decay", "output")], {"input": (self.spikes, D)},
                   {"output": (f"blocks.{i}.memory", D)})

    def _attention(self, i: int) -> None:
        """q, k and v as matrices; their products, the softmax and RoPE on the host."""
        c, D, name = self.c, self.c.d_model, f"blocks.{i}.mixer"
        nodes: dict[str, nir.NIRNode] = {f"{name}.{x}": nir.Linear(self.tensors[f"{name}.{x}.weight"]) for x in "qkv"}
        self._part(f"blocks.{i}.project", nodes, [("input", f"{name}.{x}", x) for x in "qkv"],
                   {"input": (self.stream, D)}, {x: (f"{name}.{x}", D) for x in "qkv"})
        self.steps.append(Host(
            f"{name}.attention", "attention",
            "softmax(q k / sqrt(K)) v per head over keys j <= i with i - j <= window or j < anchors, and a spike at j; "
            "RoPE (rotate-half) on q and k; 0 without a spike at i",
            {x: f"{name}.{x}" for x in "qkv"} | {"spikes": self.spikes}, {"output": f"{name}.attention"},
            {"heads": c.n_heads, "head_dim": c.head_dim, "window": c.window, "anchors": c.n_anchors,
             "rope_base": c.rope_base, "gate": c.gate}))

    def ffn(self, i: int) -> None:
        """Matrix, spikes, matrix, the residual sum, its norm, and the block's own spikes."""
        c, D, F, name, t = self.c, self.c.d_model, self.c.d_ff, f"blocks.{i}.ffn", self.tensors
        up, down = nir.Linear(t[f"{name}.up.weight"]), self._matrix(f"{name}.down.weight", f"{name}.norm.bias")
        nodes: dict[str, nir.NIRNode] = {f"{name}.down": down}
        if c.ffn == "spike":
            nodes |= {f"{name}.up": up, f"{name}.hidden": nir.Threshold(below(np.full(F, c.v_threshold)))}
            self._part(name, nodes, [("input", f"{name}.up", f"{name}.hidden", f"{name}.down", "output"),
                                     ("input", "output")],
                       {"input": (self.stream, D)}, {"output": (f"{name}.sum", D)})
            self.sites[f"ffn.{i}"] = Site(name, f"{name}.hidden")
        else:
            self._part(f"{name}.up", {f"{name}.up": up}, [("input", f"{name}.up", "output")],
                       {"input": (self.stream, D)}, {"output": (f"{name}.up", F)})
            self._gelu(f"{name}.gelu", f"{name}.up")
            self._part(name, nodes, [("hidden", f"{name}.down", "output"), ("stream", "output")],
                       {"stream": (self.stream, D), "hidden": (f"{name}.gelu", F)}, {"output": (f"{name}.sum", D)})
        self._norm(name)
        self.spikes = self.stream
        if c.block_spikes:
            node = f"blocks.{i}.spike"
            self.spikes = f"blocks.{i}.spikes"
            self._part(node, {node: nir.Threshold(below(np.full(D, c.v_threshold)))}, [("input", node, "output")],
                       {"input": (self.stream, D)}, {"output": (self.spikes, D)})
            self.sites[f"blocks.{i}"] = Site(node, node)

    def head(self) -> None:
        """Logits, with whatever prior the model has."""
        c, D, V, t = self.c, self.c.d_model, self.c.vocab_size, self.tensors
        weight = np.float64(t.get("head.prior_weight", np.float32(c.prior_weight)))
        reads = {"stream": (self.stream, D)}
        out: nir.NIRNode = nir.Linear(t["head.out.weight"])
        chains: list[tuple[str, ...]] = [("stream", "head.out", "output")]
        nodes: dict[str, nir.NIRNode] = {}
        if c.prior == "static":
            out = nir.Affine(t["head.out.weight"], weight * t["head.log_prior"].astype(np.float64))
        elif c.prior == "dynamic":
            R = D // 4
            self._part("head.down", {"head.prior_down": nir.Linear(t["head.prior_down.weight"])},
                       [("input", "head.prior_down", "output")], {"input": (self.stream, D)},
                       {"output": ("head.hidden", R)})
            self._gelu("head.gelu", "head.hidden")
            reads["prior"] = ("head.gelu", R)
            nodes = {"head.prior_weight": nir.Scale(np.full(R, weight)),
                     "head.prior_up": nir.Linear(t["head.prior_up.weight"])}
            chains.append(("prior", "head.prior_weight", "head.prior_up", "output"))
        self._part("head", {"head.out": out} | nodes, chains, reads, {"output": ("logits", V)})

    def _norm(self, name: str) -> None:
        """LayerNorm of a live sum is a host node; without one the sum is the stream (its shift lies in the matrix)."""
        self.stream = f"{name}.sum"
        if self.c.norm == "layer":
            self.stream = f"{name}.norm"
            self.steps.append(Host(
                self.stream, "layer_norm", "y = weight (x - mean(x)) / sqrt(var(x) + eps) + bias, over channels",
                {"input": f"{name}.sum"}, {"output": self.stream}, {"eps": NORM_EPS},
                {part: self.tensors[f"{name}.norm.{part}"] for part in ("weight", "bias")}))

    def _matrix(self, weight: str, shift: str) -> nir.NIRNode:
        """A matrix that ends in a residual sum; norm-free models shift the sum by a learned bias."""
        if self.c.norm == "layer":
            return nir.Linear(self.tensors[weight])
        return nir.Affine(self.tensors[weight], self.tensors[shift])

    def _gelu(self, name: str, signal: str) -> None:
        self.steps.append(Host(name, "gelu", "y = x/2 (1 + erf(x / sqrt(2)))", {"input": signal}, {"output": name}))

    def _part(self, name: str, nodes: dict[str, nir.NIRNode], chains: list[tuple[str, ...]],
              reads: dict[str, tuple[str, int]], writes: dict[str, tuple[str, int]]) -> None:
        """`chains` are paths along the edges; `reads` and `writes`: port -> (signal, width)."""
        ends = {port: nir.Input({"input": np.array([width])}) for port, (_, width) in reads.items()}
        outs = {port: nir.Output({"output": np.array([width])}) for port, (_, width) in writes.items()}
        edges = [edge for chain in chains for edge in pairwise(chain)]
        self.steps.append(Part(name, {**ends, **nodes, **outs}, edges,
                               {port: signal for port, (signal, _) in reads.items()},
                               {port: signal for port, (signal, _) in writes.items()}))


def _lif(leak: np.ndarray, theta: np.ndarray) -> nir.LIF:
    """leak (D,) float64, theta (D,) float32."""
    tau = STEP_SECONDS / (1 - leak)
    return nir.LIF(tau=tau, r=tau / STEP_SECONDS, v_leak=np.zeros_like(tau), v_threshold=below(theta),
                   v_reset=np.zeros_like(tau))


def _li(rate: np.ndarray) -> nir.LI:
    """h <- d h + (1 - d) u with d = rate (D,), float64."""
    tau = STEP_SECONDS / (1 - rate)
    return nir.LI(tau=tau, r=np.ones_like(tau), v_leak=np.zeros_like(tau))


def _layer_norm_rows(rows: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """LayerNorm of each row (V, D) in float32, by torch's own kernel: the model's currents, bit for bit."""
    import torch
    import torch.nn.functional as F

    with torch.no_grad():
        x, w, b = (torch.from_numpy(np.ascontiguousarray(a)) for a in (rows, weight, bias))
        return F.layer_norm(x, (rows.shape[1],), w, b, NORM_EPS).numpy()


def single(export: Export) -> Export:
    """The whole model as one graph behind the table. Raises `InputError` naming the nodes that NIR cannot hold.

    A signal that is a sum becomes a Scale of ones, named as the signal: NIR sums in-edges at nodes only.
    """
    table, *rest = export.steps
    hosts = [step for step in rest if isinstance(step, Host)]
    if hosts:
        kinds = {kind: [h.name for h in hosts if h.kind == kind] for kind in dict.fromkeys(h.kind for h in hosts)}
        named = ", ".join(f"{names[0]} ({kind}, {len(names)} of them)" for kind, names in kinds.items())
        raise InputError(f"no NIR node can hold {named}, so this model is not one graph; train with "
                         f"{', '.join(_REMEDY[kind] for kind in kinds)} (preset mini-neuro), or export with --target "
                         "hybrid")
    parts = [step for step in rest if isinstance(step, Part)]
    assert isinstance(table, Host)
    whole = Part("model", {"input": parts[0].nodes["input"]}, [], {"input": "current"}, {})
    source = {"current": "input"}
    wanted = {signal for part in parts for signal in part.reads.values()}
    for part in parts:
        _join(whole, part, source, wanted)
    sites = {name: Site("model", site.node) for name, site in export.sites.items()}
    return Export([table, whole], sites, export.about)


def _join(whole: Part, part: Part, source: dict[str, str], wanted: set[str]) -> None:
    """Add a part to `whole`; `source`: the node of `whole` that gives a signal; `wanted`: what any part reads.

    What nobody reads, logits and the last block's spikes, becomes an Output.
    """
    whole.nodes |= {name: x for name, x in part.nodes.items() if not isinstance(x, nir.Input | nir.Output)}
    names = {port: source[signal] for port, signal in part.reads.items()}
    inner = [(names.get(a, a), b) for a, b in part.edges]
    whole.edges += [(a, b) for a, b in inner if b not in part.writes]
    for port, signal in part.writes.items():
        into, end = [a for a, b in inner if b == port], part.nodes[port]
        if signal not in wanted:
            name = "output" if signal == "logits" else signal
            whole.nodes[name], whole.writes[name] = end, signal
        elif len(into) > 1:
            name = signal
            whole.nodes[name] = nir.Scale(np.ones(tuple(end.output_type["output"])))
        else:
            source[signal] = into[0]
            continue
        whole.edges += [(a, name) for a in into]
        source[signal] = name


_REMEDY = {
    "attention": "model.paths decay", "layer_norm": "model.norm none", "clamp": "model.v_clamp 1000",
    "gelu": "model.prior none, model.ffn spike",
}
