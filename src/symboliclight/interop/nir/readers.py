"""The parts of an exported model in other packages: spike trains of their readers beside those of the file itself.

The reference is the part as NIR means it, run by the executor in float64 on the same float32 inputs, so that a
difference is the reader's: its arithmetic, its comparison, its reset. Inputs are the signals of real text.
"""

import contextlib
import importlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nir
import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.interop.nir.dialects import DIALECTS, rewrite
from symboliclight.interop.nir.executor import Executor, Graph, Work
from symboliclight.interop.nir.files import Export, Part, threshold_of, write

Outputs = dict[str, np.ndarray]  # node -> values (T, units); the Output node under its own name

CAUSES = {
    ("snntorch", "LIF"): "the same operations in the same order",
    ("snntorch", "Threshold"): "a LIF with beta = 1 - dt/tau = 0: the sum itself",
    ("norse", "LIF"): "divides the input by tau, so thresholds are scaled by 1 - λ, and computes v + (1 - λ)(x - v), "
                      "which rounds otherwise than λ v + x",
    ("norse", "Threshold"): "a LIF with tau = dt computes v + (x - v), which rounds",
    ("spikingjelly", "LIF"): "the same operations; >= itself, so thresholds are the model's own",
    ("spikingjelly", "Threshold"): "tau/dt must exceed 1: the nearest float64 above; v + (x - v)/tau rounds",
    ("sinabs", "LIF"): "as loaded, a spike subtracts the threshold, and a membrane of two thresholds emits two spikes; "
                       "with SingleSpike and MembraneReset, as the model",
    ("sinabs", "Threshold"): "a LIF that leaks all within a step; as loaded, sums of two thresholds emit two spikes",
    ("sinabs", "LI"): "ExpLeak has gain 1, so 1 - d lies in the matrix before it, rounded to float32; no spikes",
}


def versions() -> dict[str, str | None]:
    """Installed version of each reader and of what they share; None where it is missing."""
    return {name: _version(name) for name in (*DIALECTS, "nir", "nirtorch")}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_part(reader: str, file: Path, x: np.ndarray, watch: Sequence[str], adapted: bool = True) -> Outputs:
    """A file in a package, fed x (T, N) float32 step by step: values of the Output and of the nodes to `watch`.

    adapted: after loading sinabs layers, replace their reset and spike functions by those of the model.
    Raises `InputError` if the package is not installed.
    """
    try:
        torch = importlib.import_module("torch")
        load = _LOADERS[reader]
        with _quiet(), torch.no_grad():
            net, step = load(nir.read(file), adapted)
            seen: dict[str, list[Any]] = {name: [] for name in watch}
            for name, rows in seen.items():
                module = dict(net.named_modules())[name.replace(".", "_")]
                module.register_forward_hook(lambda _, inputs, output, rows=rows: rows.append(_first(output)))
            out, state = [], None
            for row in torch.from_numpy(x)[:, None]:
                y, state = step(row, state)
                out.append(y)
    except ImportError as error:
        raise InputError(f"{reader} cannot be imported ({error}): install it to compare its reader") from error
    return {"output": torch.cat(out).numpy()} | {name: torch.cat(rows).numpy() for name, rows in seen.items()}


def _first(output: Any) -> Any:
    return (output[0] if isinstance(output, tuple) else output).detach().clone()


@contextlib.contextmanager
def _quiet() -> Any:
    """Readers print and warn about what the dialect has arranged."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


Loaded = tuple[Any, Callable[[Any, Any], tuple[Any, Any]]]


def _snntorch(graph: nir.NIRGraph, adapted: bool) -> Loaded:
    net = importlib.import_module("snntorch.import_nir").import_from_nir(graph)
    return net, lambda x, state: (net(x)[0], None)  # its neurons keep their own state


def _spikingjelly(graph: nir.NIRGraph, adapted: bool) -> Loaded:
    net = importlib.import_module("spikingjelly.activation_based.nir_exchange").import_from_nir(graph)
    return net, net


def _norse(graph: nir.NIRGraph, adapted: bool) -> Loaded:
    net = importlib.import_module("norse.torch").from_nir(graph)
    return net, net


def _sinabs(graph: nir.NIRGraph, adapted: bool) -> Loaded:
    net = importlib.import_module("sinabs.nir").from_nir(graph, batch_size=1)
    activation = importlib.import_module("sinabs.activation")
    for module in net.modules():
        if adapted and getattr(module, "spike_fn", None) is not None:
            module.spike_fn, module.reset_fn = activation.SingleSpike, activation.MembraneReset()
    return net, lambda x, state: (net(x)[0], None)


_LOADERS: dict[str, Callable[[nir.NIRGraph, bool], Loaded]] = {
    "snntorch": _snntorch, "norse": _norse, "spikingjelly": _spikingjelly, "sinabs": _sinabs,
}


def reference(part: Part, x: np.ndarray) -> Outputs:
    """The part as its file means it, in float64: values by node."""
    graph = Graph(part, np.dtype(np.float64), {})
    (port,) = part.reads
    rows = []
    for row in x.astype(np.float64):
        graph.step({port: row}, Work())
        rows.append(dict(graph.values))
    return {name: np.stack([row[name] for row in rows]) for name in part.nodes}


def signals(export: Export, tokens: Sequence[int]) -> dict[str, np.ndarray]:
    """What each signal of the model is over a text: (T, width), spikes as 0 and 1, in float32."""
    executor = Executor(export)
    rows = [executor.step(int(token))[0] for token in tokens]
    names = {"spikes"} | {signal for part in export.parts.values() for signal in part.reads.values()}
    return {name: np.stack([row[name] for row in rows]).astype(np.float32) for name in names}


def unclamped(export: Export, texts: Sequence[dict[str, np.ndarray]]) -> dict[str, int]:
    """Encoder spikes of the file, whose LIF has no lower bound, that are not the model's, over the signals of texts."""
    part = export.parts["encoder"]
    exact = [reference(part, one["current"])["encoder.lif"] != one["spikes"].astype(bool) for one in texts]
    return {"differ": sum(int(x.sum()) for x in exact), "values": sum(x.size for x in exact)}


def compare_part(reader: str, export: Export, name: str, x: np.ndarray, folder: Path) -> list[dict[str, Any]]:
    """One row for each spiking node of a part, or for its integrators, in one reader, on inputs x (T, N).

    differ: spikes that are not the file's; as_loaded: before sinabs layers are adapted; plain: if the reader is given
    the file without its dialect, or why it cannot be; boundary: of a threshold, its float32 neighbours and itself.
    Raises `InputError` naming the node that the reader's dialect cannot hold.
    """
    part, loose = export.parts[name], rewrite(export, reader, [name])
    spiking = [node for node, kind in part.nodes.items() if isinstance(kind, nir.LIF | nir.Threshold)]
    watch = spiking or [node for node, kind in part.nodes.items() if isinstance(kind, nir.LI)]
    exact = reference(part, x)
    write(folder, rewrite(export, "nir", [name]))
    plain = _plain(reader, folder / f"{name}.nir", x, watch)
    write(folder, loose)
    file, rows = folder / f"{name}.nir", []
    found, loaded = (read_part(reader, file, x, watch, adapted) for adapted in (True, False))
    for node in watch:
        kind = type(part.nodes[node]).__name__
        row = {"reader": reader, "part": name, "node": node, "kind": kind, "steps": len(x),
               "held_as": type(loose.parts[name].nodes[node]).__name__, "values": exact[node].size,
               "cause": CAUSES[reader, kind]}
        if spiking:
            row |= {"spikes": int(exact[node].sum()), "differ": _differ(found[node], exact[node]),
                    "as_loaded": _differ(loaded[node], exact[node]),
                    "plain": plain if isinstance(plain, str) else _differ(plain[node], exact[node])}
            if len(part.nodes) == 3:  # Input, neuron, Output: its input is its membrane
                edge = _edge(part.nodes[node])
                row["boundary"] = _differ(read_part(reader, file, edge, [node])[node], reference(part, edge)[node])
        else:
            row["largest_difference"] = float(np.abs(found[node] - exact[node]).max())
        rows.append(row)
    return rows


def _differ(found: np.ndarray, exact: np.ndarray) -> int:
    return int((found.reshape(exact.shape) != exact).sum())


def _plain(reader: str, file: Path, x: np.ndarray, watch: Sequence[str]) -> Outputs | str:
    """The file without a dialect in the reader; its error in one line if it has one."""
    try:
        return read_part(reader, file, x, watch, adapted=False)
    except InputError:
        raise
    except Exception as error:  # whatever a package raises on what it does not know
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _edge(node: Any) -> np.ndarray:
    """Inputs (3, N) that bring a fresh membrane to θ, to the float32 above, and to the float32 below it."""
    stored = node.v_threshold if isinstance(node, nir.LIF) else node.threshold
    theta = threshold_of(stored)
    return np.stack([theta, np.nextafter(theta, np.float32(np.inf)), stored])
