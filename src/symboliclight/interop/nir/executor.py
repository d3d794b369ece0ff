"""Runs an exported folder event by event, in NumPy, from its files alone: no model code, no torch.

A matrix adds the columns of its active inputs, in index order where the inputs are spikes. What each step costs is
counted as it happens:

    events          spikes emitted, and `graded`: nonzero values that are no spikes and enter a matrix
    operations      one for each nonzero weight of an active input: accumulates for spikes, multiply-accumulates else
    memory reads    weights of active inputs, states of neurons (all of them, each step), numbers read by host nodes
    active          neurons that spiked, by site
    clamped         membranes that a clamp changed without changing a spike: the bound below

`dtype` is the arithmetic. In float64 the rounding of any sum is far below the smallest distance between a membrane and
its threshold, `margin`, so these are the spikes of the stored weights whatever the order of summation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nir
import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.interop.nir.files import Export, Host, Part, order, read, threshold_of
from symboliclight.interop.nir.hosts import host


@dataclass
class Work:
    """What one step cost."""

    events: int = 0
    graded: int = 0
    accumulates: int = 0
    multiply_accumulates: int = 0
    weight_reads: int = 0
    state_reads: int = 0
    host_reads: int = 0
    clamped: int = 0
    active: dict[str, int] = field(default_factory=dict)


@dataclass
class Run:
    """What a text gave: logits (T, V); by site spikes (T, units) bool and |v - θ| of the unit nearest to its threshold,
    (T,); work by step."""

    logits: np.ndarray
    spikes: dict[str, np.ndarray]
    margins: dict[str, np.ndarray]
    work: list[Work]

    @property
    def margin(self) -> float:
        """The smallest distance of any membrane to its threshold."""
        return min(float(found.min()) for found in self.margins.values())


class Executor:
    """One sequence through an exported model, token by token."""

    def __init__(self, export: Export, dtype: str = "float64") -> None:
        """dtype: float64 or float32. Raises `InputError` naming a node that cannot be run."""
        if export.loose:
            raise InputError(f"these are single parts for {export.about['dialect']}, not a model that runs; export "
                             "with --format nir alone")
        self.export, self.dtype = export, np.dtype(dtype)
        clamps = {h.parameters["node"]: (h.parameters["low"], h.parameters["high"])
                  for h in export.hosts if h.kind == "clamp"}
        self._run: list[tuple[Part | Host, Any]] = []
        for step in export.steps:
            if isinstance(step, Part):
                self._run.append((step, Graph(step, self.dtype, clamps)))
            elif step.kind != "clamp":
                self._run.append((step, host(step, self.dtype)))

    @staticmethod
    def load(folder: str | Path, dtype: str = "float64") -> "Executor":
        """The executor of a folder that `symboliclight export --format nir` wrote."""
        return Executor(read(folder), dtype)

    def reset(self) -> None:
        """Forget what was read."""
        for _, runs in self._run:
            if hasattr(runs, "reset"):
                runs.reset()

    def step(self, token: int) -> tuple[dict[str, Any], Work]:
        """Read one token; returns every signal by name, and what it cost. Spike sites are under their own names too."""
        signals: dict[str, Any] = {"token": token}
        work = Work()
        for step, runs in self._run:
            values = {port: signals[signal] for port, signal in step.reads.items()}
            if isinstance(step, Part):
                out = runs.step(values, work)
                signals |= {signal: out[port] for port, signal in step.writes.items()}
            else:
                written = runs(values)
                work.host_reads += written.size if step.kind == "table" else sum(np.size(x) for x in values.values())
                signals |= dict.fromkeys(step.writes.values(), written)
        for name, site in self.export.sites.items():
            signals[f"site.{name}"] = spikes = self.graph(site.part).values[site.node]
            work.active[name] = int(np.count_nonzero(spikes))
        work.events = sum(work.active.values())
        return signals, work

    def graph(self, part: str) -> "Graph":
        """The running graph of a part."""
        return next(runs for step, runs in self._run if step.name == part and isinstance(runs, Graph))

    def run(self, tokens: Sequence[int], advance: Callable[[int], None] = lambda count: None) -> Run:
        """Read a text from a fresh start; `advance` is told of each token."""
        self.reset()
        logits, work = [], []
        spikes: dict[str, list[np.ndarray]] = {name: [] for name in self.export.sites}
        margins: dict[str, list[float]] = {name: [] for name in self.export.sites}
        for token in tokens:
            signals, cost = self.step(int(token))
            logits.append(signals["logits"])
            work.append(cost)
            for name, site in self.export.sites.items():
                spikes[name].append(signals[f"site.{name}"])
                margins[name].append(self.graph(site.part).margin[site.node])
            advance(1)
        return Run(np.stack(logits), {name: np.stack(rows) for name, rows in spikes.items()},
                   {name: np.array(found) for name, found in margins.items()}, work)


def clamp_share(export: Export, texts: Sequence[Sequence[int]],
                advance: Callable[[int], None] = lambda count: None) -> dict[str, Any]:
    """How often the clamp of the encoder's membrane acts below: (token, channel) pairs, over texts read afresh each.

    An export without a clamp needs no reading: the bound is out of reach.
    """
    total = sum(map(len, texts))
    if not any(h.kind == "clamp" for h in export.hosts):
        return {"active_share": 0.0, "tokens": total}
    last = next(i for i, step in enumerate(export.steps) if step.name == "encoder")
    front = Executor(Export(export.steps[: last + 1], {}, export.about))
    clamped = pairs = 0
    for tokens in texts:
        front.reset()
        for token in tokens:
            signals, work = front.step(int(token))
            clamped, pairs = clamped + work.clamped, pairs + signals["current"].size
        advance(len(tokens))
    return {"active_share": clamped / pairs, "tokens": total}


class Graph:
    """A part in topological order, with the state of its neurons."""

    def __init__(self, part: Part, dtype: np.dtype, clamps: dict[str, tuple[float, float]]) -> None:
        self.part, self.dtype, self.clamps = part, dtype, clamps
        self.values: dict[str, Any] = {}
        self.inputs: dict[str, list[str]] = {node: [] for node in part.nodes}
        for source, target in part.edges:
            self.inputs[target].append(source)
        self.order = order(part.name, part.nodes, part.edges)
        for name in self.order:
            if not self.inputs[name] and name not in part.reads:
                raise InputError(f"node {name} of {part.name} has no input; export the model again")
        self.runs = {name: self._prepare(name, node) for name, node in part.nodes.items()}
        self.reset()

    def reset(self) -> None:
        self.state: dict[str, np.ndarray] = {}
        self.margin: dict[str, float] = {}

    def step(self, values: dict[str, Any], work: Work) -> dict[str, Any]:
        """Values by Input node -> values by Output node; every node's value stays in `values`."""
        for name in self.order:
            x = values[name] if name in values else self._sum(name)
            self.values[name] = self.runs[name](x, work)
        return {port: self.values[port] for port in self.part.writes}

    def _sum(self, name: str) -> np.ndarray:
        """In-edges are added; a lone one passes as it is, so that spikes stay spikes."""
        first, *others = (self.values[source] for source in self.inputs[name])
        for other in others:
            first = first.astype(self.dtype) + other
        return first

    def _prepare(self, name: str, node: nir.NIRNode) -> Callable[[np.ndarray, Work], np.ndarray]:
        if isinstance(node, nir.Linear | nir.Affine):
            return _Matrix(node, self.dtype)
        if isinstance(node, nir.Scale):
            scale = node.scale.astype(self.dtype)
            return lambda x, work: x * scale
        if isinstance(node, nir.Threshold):
            theta = threshold_of(node.threshold).astype(self.dtype)
            return lambda x, work: self._fire(name, x, theta)
        if isinstance(node, nir.LIF | nir.LI):
            return self._neuron(name, node)
        if isinstance(node, nir.Input | nir.Output):
            return lambda x, work: x
        raise InputError(f"node {name} of {self.part.name} is a {type(node).__name__}, which is not run here")

    def _neuron(self, name: str, node: Any) -> Callable[[np.ndarray, Work], np.ndarray]:
        """Forward Euler of the node's equation, as leak · v + gain · I + rest: one product, one sum each."""
        share = np.asarray(self.part.dt / node.tau, np.float64)
        leak, gain = (1 - share).astype(self.dtype), (node.r * share).astype(self.dtype)
        rest = (node.v_leak * share).astype(self.dtype)
        theta = threshold_of(node.v_threshold).astype(self.dtype) if isinstance(node, nir.LIF) else None
        low, high = self.clamps.get(name, (-np.inf, np.inf))

        def step(x: np.ndarray, work: Work) -> np.ndarray:
            v = leak * self.state.get(name, np.zeros_like(leak)) + gain * x
            if rest.any():
                v = v + rest
            work.state_reads += v.size
            work.clamped += int(np.count_nonzero(v < low))
            v = np.clip(v, self.dtype.type(low), self.dtype.type(high))
            spikes = None if theta is None else self._fire(name, v, theta)
            self.state[name] = v if spikes is None else np.where(spikes, node.v_reset.astype(self.dtype), v)
            return v if spikes is None else spikes

        return step

    def _fire(self, name: str, v: np.ndarray, theta: np.ndarray) -> np.ndarray:
        self.margin[name] = float(np.abs(v - theta).min())
        return v >= theta


class _Matrix:
    """W x (+ b) by the columns of active inputs."""

    def __init__(self, node: Any, dtype: np.dtype) -> None:
        self.dtype = dtype
        self.columns = np.ascontiguousarray(node.weight.T, dtype)  # (inputs, outputs)
        self.fan_out = np.count_nonzero(node.weight, 0)
        self.bias = node.bias.astype(dtype) if isinstance(node, nir.Affine) else None

    def __call__(self, x: np.ndarray, work: Work) -> np.ndarray:
        active = np.flatnonzero(x)
        rows = self.columns[active]
        operations = int(self.fan_out[active].sum())
        work.weight_reads += rows.size
        if x.dtype == bool:
            work.accumulates += operations
            y = np.add.reduce(rows, 0, dtype=self.dtype)  # along the outer axis: one row after the other
        else:
            work.graded += active.size
            work.multiply_accumulates += operations
            y = x[active] @ rows
        return y if self.bias is None else y + self.bias
