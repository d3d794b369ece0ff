"""Which matrices of a model a neuromorphic target could hold, on how many cores, and what stays elsewhere.

Only matrices that read spikes are placed: that is what the hardware is for. Cores are counted by capacity alone;
routing, timing and what a core keeps beside weights and states are not published in a form that could be counted.
Nothing here has run on hardware.

Legend: M inputs (fan-in), N outputs (neurons).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from symboliclight.core.config import ModelConfig
from symboliclight.core.errors import InputError
from symboliclight.interop.hardware import SOURCES, Limit, Target
from symboliclight.measure.energy.parts import Shape, layout

REASONS = {
    "attention": "products of two activations",
    "norm": "LayerNorm: mean and variance of live values",
    "lookup": "a table look-up",
}


@dataclass(frozen=True)
class Placement:
    """One spike-fed matrix on one target."""

    name: str
    fan_in: int
    neurons: int
    synapses: int
    pieces: tuple[int, ...]  # neurons on each core it takes; empty if it does not fit
    fill: float  # share of the weight capacity of those cores that it takes
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return bool(self.pieces)


def place(target: Target, name: str, M: int, N: int, taken: int = 0) -> Placement:
    """A matrix (N, M) on cores of its own, after `taken` cores that others have; only Speck's differ in size."""
    if target.kernels:
        pieces, capacity, notes = _on_kernels(target, M, N, taken)
    else:
        pieces, capacity, notes = (_on_circuits if target.join else _in_memory)(target, M, N)
    out = target.fan_out.value
    if out is not None and len(pieces) > out:
        notes.append(f"its inputs must reach {len(pieces)} cores, a core sends to {out}: events go through the host")
    return Placement(name, M, N, M * N, tuple(pieces), M * N / capacity if pieces else 0.0, tuple(notes))


def _split(N: int, most: int) -> list[int]:
    """N neurons on as few cores as hold `most` each, evenly."""
    cores = -(-N // most)
    return [N // cores + (i < N % cores) for i in range(cores)]


def _in_memory(t: Target, M: int, N: int) -> tuple[list[int], int, list[str]]:
    """Cores with one memory for everything: weights of all inputs and one state a neuron."""
    assert t.memory.value is not None and t.weight_bits.value is not None and t.state_bits.value is not None
    each = -(-(M * t.weight_bits.value + t.state_bits.value) // 8)
    most = min(t.memory.value // each, t.neurons.value or N)
    if not most:
        return [], 1, [f"the {M} weights of a single neuron exceed the {t.memory.value:,} bytes of a core"]
    pieces = _split(N, most)
    return pieces, len(pieces) * t.memory.value * 8 // t.weight_bits.value, []


def _on_circuits(t: Target, M: int, N: int) -> tuple[list[int], int, list[str]]:
    """Analogue circuits of limited fan-in, joined to neurons."""
    assert t.fan_in.value is not None and t.neurons.value is not None
    joined = -(-M * t.rows_per_input // t.fan_in.value)
    if joined > t.neurons.value:
        return [], 1, [f"a neuron would need {joined} circuits, a chip has {t.neurons.value}"]
    pieces = _split(N, t.neurons.value // joined)
    capacity = len(pieces) * t.neurons.value * t.fan_in.value // t.rows_per_input
    return pieces, capacity, [f"{joined} circuits joined a neuron; how many can be is not checked"] * (joined > 1)


def _on_kernels(t: Target, M: int, N: int, taken: int) -> tuple[list[int], int, list[str]]:
    """Convolution cores, the largest of each chip first: a matrix is a 1x1 kernel of M x 2^ceil(log2 N) entries."""
    cores = sorted(zip(t.kernels, t.states, strict=True), reverse=True)
    assert t.fan_in.value is not None
    if t.fan_in.value < M:
        return [], 1, [f"{M} inputs exceed {t.fan_in.value} channels, and partial sums of two cores cannot be added"]
    pieces: list[int] = []
    capacity, left = 0, N
    while left:
        size, states = cores[(taken + len(pieces)) % len(cores)]
        most = min(1 << (size // M).bit_length() - 1 if size >= M else 0, states)
        if not most:
            return [], 1, [f"{M} weights of a single neuron exceed the {size:,} entries of a core"]
        pieces.append(min(most, left))
        capacity, left = capacity + size, left - pieces[-1]
    return pieces, capacity, []


def placements(config: ModelConfig, target: Target) -> list[Placement]:
    """Every matrix that reads spikes, in forward order."""
    found: list[Placement] = []
    for name, p in layout(config).items():
        if p.site is not None:
            found.append(place(target, name, p.inputs, p.outputs, sum(len(f.pieces) for f in found)))
    return found


def fit(config: ModelConfig, target: Target) -> dict[str, Any]:
    """The whole model on one target, as plain values. Raises `InputError` where no matrix reads spikes."""
    parts, placed = layout(config), placements(config, target)
    if not placed:
        raise InputError(f"no matrix of this model reads spikes: there is nothing to map on {target.title}")
    cores = sum(len(p.pieces) for p in placed)
    per_chip = target.cores.value or 1
    return {
        "target": target.name, "title": target.title, "limits": limits(target),
        "placed": [{"name": p.name, "fan_in": p.fan_in, "neurons": p.neurons, "synapses": p.synapses, "fits": p.fits,
                    "cores": len(p.pieces), "neurons_per_core": max(p.pieces, default=0), "fill": p.fill,
                    "notes": list(p.notes)} for p in placed],
        "elsewhere": elsewhere(config, target),
        "totals": {
            "cores": cores, "chips": -(-cores // per_chip), "neurons": sum(p.neurons for p in placed if p.fits),
            "synapses": sum(p.synapses for p in placed if p.fits), "fit": sum(p.fits for p in placed),
            "matrices": len(placed), "share_of_weights": _share(parts, placed),
            "turns": len(placed), "readout": target.readout[0],
        },
    }


def _share(parts: Mapping[str, Shape], placed: list[Placement]) -> float:
    """Synapses on the target among the weights of all matrices, the embedding apart."""
    whole = sum(p.inputs * p.outputs for p in parts.values() if p.kind == "linear")
    return sum(p.synapses for p in placed if p.fits) / whole


def elsewhere(config: ModelConfig, target: Target) -> list[dict[str, str]]:
    """Kinds of part that are not placed: where they go, and why."""
    kinds: dict[str, tuple[str, str]] = {}
    for name, p in layout(config).items():
        kind = ".".join("*" if x.isdigit() else x for x in name.split("."))
        if p.site is None and kind not in kinds:
            kinds[kind] = _where(name, p, config, target)
    if any(p.site not in (None, "encoder") for p in layout(config).values()):
        kinds["thresholds of FFN and blocks"] = target.elsewhere, "compare values that stand there, and send the events"
    return [{"part": kind, "where": where, "why": why} for kind, (where, why) in kinds.items()]


def _where(name: str, p: Shape, config: ModelConfig, target: Target) -> tuple[str, str]:
    if p.kind in ("membrane", "decay"):
        what = "LIF neurons fed by the host" if p.kind == "membrane" else "leaky integrators behind mixer.tcam"
        lost = "its leak subtracts a constant, the model's keeps a fraction"
        return ("chip", what) if target.leak else (target.elsewhere, lost)
    if name.startswith("head"):
        return target.elsewhere, "GELU prior" if "prior" in name else f"{config.vocab_size:,} outputs of a dense input"
    if p.kind == "linear":
        if target.graded:
            return "chip or host", "graded events could carry its dense input, one for each unit: nothing is spared"
        return target.elsewhere, "reads continuous values; events carry none"
    if p.kind == "norm" and p.acs == p.outputs:
        return "chip", "a bias"
    if p.kind == "elementwise":
        if not name.endswith("residual"):
            return target.elsewhere, "products element by element"
        return "chip or host" if target.readout[0] else target.elsewhere, "a sum with the continuous stream"
    return target.elsewhere, REASONS[p.kind]


def limits(target: Target) -> dict[str, Any]:
    """Published limits with their sources, spelt out; None: not published."""
    found: dict[str, Any] = {}
    for name, value in vars(target).items():
        if isinstance(value, Limit):
            found[name] = {"value": value.value, "source": SOURCES[value.source] if value.source else None,
                           "note": value.note}
    found["readout"] = {"value": target.readout[0] or "none", "source": SOURCES[target.readout[1]], "note": ""}
    if target.kernels:
        source = SOURCES["sinabs-memory"]
        found["weight entries by core"] = {"value": list(target.kernels), "source": source, "note": ""}
        found["neuron entries by core"] = {"value": list(target.states), "source": source, "note": ""}
    return found


def quantise(model: nn.Module, config: ModelConfig, target: Target) -> list[str]:
    """Round the weights of every placed matrix in `model`, in place, as the target would store them; returns the names.

    Symmetric, to the nearest of 2 · levels + 1 steps of the largest weight that shares the scale. Nothing else changes:
    states, noise of analogue circuits and clipping of sums are not simulated.
    """
    done = []
    for found in placements(config, target):
        if found.fits:
            weight: Any = model.get_submodule(found.name).weight.data
            groups = {"matrix": [len(weight)], "core": list(found.pieces), "channel": [1] * len(weight)}[target.scale]
            for rows in weight.split(groups):
                rows.copy_(_rounded(rows, target.levels))
            done.append(found.name)
    return done


def _rounded(weight: Tensor, levels: int) -> Tensor:
    step = weight.abs().max() / levels
    return (weight / step).round() * step if step > 0 else weight
