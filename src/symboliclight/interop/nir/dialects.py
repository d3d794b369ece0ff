"""Parts as one other package reads them. Each reader takes the same file differently; here is what each needs.

    snntorch      dt is 1e-4 s in its code; R = tau/dt; `>`; hard reset; one threshold a population
    norse         dt is 1e-3 s by default; ignores R, so thresholds are scaled by dt/tau; `>`; hard reset
    spikingjelly  dt is 1e-4 s by default; R = tau/dt; `>=`; hard reset; one tau and one threshold a population
    sinabs        leaks by exp(-1/tau), tau in steps, ignores R and dt; `>=`; as loaded it resets by subtraction and
                  emits several spikes a step; no Linear, so an Affine of bias 0; LI with R = 1 and gain 1

A Threshold is a LIF that keeps nothing: tau = dt (or as near as the reader takes). A sum at an Output is a matrix of
ones on its diagonal where the reader sums at nodes only. No reader holds a Scale; LI is held by sinabs alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import nir
import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.interop.nir.files import STEP_SECONDS, Export, Part, below, threshold_of


@dataclass(frozen=True)
class Dialect:
    """What one reader makes of a file."""

    dt: float  # seconds a step
    inclusive: bool  # fires at v >= threshold, not above it
    sums_at_output: bool  # adds the in-edges of an Output
    uniform: tuple[str, ...]  # parameters of a LIF that must be equal over its neurons
    linear: bool = True  # has Linear, not only Affine
    integrator: bool = False  # has LI


DIALECTS = {
    "snntorch": Dialect(1e-4, False, False, ("v_threshold",)),
    "norse": Dialect(1e-3, False, True, ()),
    "spikingjelly": Dialect(1e-4, True, False, ("tau", "v_threshold")),
    "sinabs": Dialect(1.0, True, True, (), linear=False, integrator=True),
}


def rewrite(export: Export, dialect: str, names: Sequence[str] | None = None) -> Export:
    """The named parts (None: all), by name or by kind (`ffn` is every block's), as the reader takes them.

    Raises `InputError` for an unknown part, and naming the node that the reader cannot hold.
    """
    parts = [p for p in export.parts.values() if names is None or _kind(p) in names or p.name in names]
    known = {_kind(p) for p in export.parts.values()} | set(export.parts)
    missing = [name for name in names or () if name not in known]
    if missing:
        kinds = sorted({_kind(p) for p in export.parts.values()})
        raise InputError(f"there is no part {', '.join(missing)}; known kinds are {', '.join(kinds)}")
    if dialect != "nir":
        parts = [_rewrite(part, dialect) for part in parts]
    kept = {part.name for part in parts}
    sites = {name: site for name, site in export.sites.items() if site.part in kept}
    dt = {"dt": parts[0].dt} if dialect != "nir" else {}
    about = export.about | {"dialect": dialect, "loose": True, "units": export.about["units"] | dt}
    return Export(list(parts), sites, about)


def _kind(part: Part) -> str:
    """`ffn` of `blocks.3.ffn`."""
    return part.name.split(".", 2)[-1] if part.name.startswith("blocks.") else part.name


def _rewrite(part: Part, name: str) -> Part:
    dialect = DIALECTS[name]
    refuse = _refusal(part, name)
    if len(part.reads) > 1 or len(part.writes) > 1:
        ports = sorted(part.reads if len(part.reads) > 1 else part.writes)
        refuse(ports[1], f"is one of {len(ports)} ends ({', '.join(ports)}), and its reader takes "
                         "one input and one output")
    nodes, before = {}, {target: source for source, target in part.edges}
    for key, node in part.nodes.items():
        nodes[key] = _node(key, node, dialect, name, refuse)
        if isinstance(node, nir.LI):
            source = before[key]
            if not isinstance(part.nodes[source], nir.Linear):
                refuse(key, "has a gain below 1 and no matrix before it to take the gain")
            gain = node.r * part.dt / node.tau
            nodes[source] = _matrix((part.nodes[source].weight * gain[:, None]).astype(np.float32), None, dialect)
    edges = list(part.edges)
    (output,) = part.writes
    into = [source for source, target in edges if target == output]
    if len(into) > 1 and not dialect.sums_at_output:
        width = int(part.nodes[output].output_type["output"][0])
        nodes[f"{part.name}.add"] = nir.Linear(np.eye(width, dtype=np.float32))
        edges = [(a, f"{part.name}.add" if b == output else b) for a, b in edges] + [(f"{part.name}.add", output)]
    return replace(part, nodes=nodes, edges=edges, dt=dialect.dt)


def _refusal(part: Part, name: str) -> Callable[[str, str], NoReturn]:
    def refuse(node: str, why: str) -> NoReturn:
        raise InputError(f"{name} cannot hold node {node} of {part.name}: it {why}; choose other parts with --parts, "
                         "such as encoder,ffn,spike")
    return refuse


def _node(key: str, node: Any, dialect: Dialect, name: str, refuse: Callable[[str, str], NoReturn]) -> nir.NIRNode:
    if isinstance(node, nir.Linear | nir.Affine):
        return _matrix(node.weight, node.bias if isinstance(node, nir.Affine) else None, dialect)
    if isinstance(node, nir.Scale) or (isinstance(node, nir.LI) and not dialect.integrator):
        refuse(key, f"is a {type(node).__name__}, which its reader does not know")
    if isinstance(node, nir.LI):
        return nir.LI(tau=_steps(1 - STEP_SECONDS / node.tau), r=np.ones_like(node.tau, np.float32),
                      v_leak=np.zeros_like(node.tau, np.float32))
    if isinstance(node, nir.LIF):
        return _neuron(key, 1 - STEP_SECONDS / node.tau, threshold_of(node.v_threshold), dialect, name, refuse)
    if isinstance(node, nir.Threshold):
        return _neuron(key, np.zeros(node.threshold.shape), threshold_of(node.threshold), dialect, name, refuse)
    return node


def _neuron(key: str, leak: np.ndarray, theta: np.ndarray, dialect: Dialect, name: str,
            refuse: Callable[[str, str], NoReturn]) -> nir.LIF:
    """A LIF of leak λ (0: memoryless), threshold θ of v >= θ and hard reset to 0, in the reader's terms."""
    tau = dialect.dt / (1 - leak)
    if name == "sinabs":
        tau = _steps(leak)
    elif name == "spikingjelly":
        tau = np.maximum(tau, dialect.dt * (1 + np.finfo(np.float64).eps))  # it wants tau / dt above 1
    elif name == "norse":
        theta = theta * (np.float32(dialect.dt) * (np.float32(1) / tau.astype(np.float32)))  # as its own float32 does
    for parameter, values in (("tau", tau), ("v_threshold", theta)):
        if parameter in dialect.uniform and np.unique(values).size > 1:
            refuse(key, f"has {np.unique(values).size} values of {parameter}, and its reader takes one a population")
    stored = theta if dialect.inclusive else below(theta)
    zero = np.zeros_like(tau)
    return nir.LIF(tau=tau, r=tau / dialect.dt, v_leak=zero, v_threshold=stored, v_reset=zero.copy())


def _steps(leak: np.ndarray) -> np.ndarray:
    """tau in steps, float32, with exp(-1/tau) = leak; 0 is so short that nothing is left after a step."""
    with np.errstate(divide="ignore"):
        return np.maximum(-1 / np.log(leak), 1e-3).astype(np.float32)


def _matrix(weight: np.ndarray, bias: np.ndarray | None, dialect: Dialect) -> nir.NIRNode:
    if bias is None and dialect.linear:
        return nir.Linear(weight)
    return nir.Affine(weight, np.zeros(len(weight), np.float32) if bias is None else bias.astype(np.float32))
