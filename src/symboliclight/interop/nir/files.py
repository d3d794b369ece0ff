"""The exported folder: `manifest.json`, one `.nir` file a part, `host.safetensors`, the tokenizer.

Steps of the manifest run in order. A step reads signals by port and writes signals by port; the first signal is
`token`, the last `logits`. A part's ports are the Input and Output nodes of its graph.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from symboliclight.core import checkpoint
from symboliclight.core.errors import InputError
from symboliclight.core.parts import parts_of

try:
    import h5py
    import nir
except ImportError as missing:
    raise InputError(f"NIR files need the packages nir and h5py ({missing}): pip install 'symboliclight[neuro]'"
                     ) from missing

FORMAT = 1  # raised when the manifest changes meaning
MANIFEST, TENSORS = "manifest.json", "host.safetensors"
STEP_SECONDS = 1e-4  # dt: a token is a time step; its length in seconds is a convention, and the one snnTorch assumes
NODES = ("Input", "Output", "Linear", "Affine", "Scale", "Threshold", "LIF", "LI")


@dataclass
class Part:
    """Nodes that NIR holds, as one graph: `reads` and `writes` map its Input and Output nodes to signals."""

    name: str
    nodes: dict[str, nir.NIRNode]
    edges: list[tuple[str, str]]
    reads: dict[str, str]
    writes: dict[str, str]
    dt: float = STEP_SECONDS  # seconds a step


@dataclass
class Host:
    """A node that NIR has no word for. A `clamp` reads and writes nothing: it bounds the state of the node it names."""

    name: str
    kind: str
    equation: str
    reads: dict[str, str] = field(default_factory=dict)
    writes: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """Where spikes arise: a node of a part."""

    part: str
    node: str


@dataclass
class Export:
    """Everything in a folder."""

    steps: list[Part | Host]
    sites: dict[str, Site]
    about: dict[str, Any]  # free facts: the model's config, units, dialect, measured shares

    def __post_init__(self) -> None:
        """Refuse a step that reads what no earlier step has written."""
        known = {"token"}
        for step in [] if self.loose else self.steps:
            for port, signal in step.reads.items():
                if signal not in known:
                    raise InputError(f"node {step.name} reads {signal!r} at {port}, which no earlier node writes; "
                                     "export the model again")
            known |= set(step.writes.values())

    @property
    def loose(self) -> bool:
        """Whether these are parts to be read one by one, not a model that runs."""
        return bool(self.about.get("loose"))

    @property
    def parts(self) -> dict[str, Part]:
        """The graphs by name."""
        return {step.name: step for step in self.steps if isinstance(step, Part)}

    @property
    def hosts(self) -> list[Host]:
        """The nodes that NIR does not hold, in order."""
        return [step for step in self.steps if isinstance(step, Host)]


def below(threshold: np.ndarray) -> np.ndarray:
    """The float32 next below: `v > below(θ)` is `v >= θ` for every float32 v, and NIR's comparison is `>`."""
    return np.nextafter(np.asarray(threshold, np.float32), np.float32(-np.inf))


def threshold_of(stored: np.ndarray) -> np.ndarray:
    """θ of `v >= θ`, given the stored threshold of `v > stored`: its successor in the format it is stored in."""
    return np.nextafter(stored, np.array(np.inf, stored.dtype))


def order(name: str, nodes: Mapping[str, Any], edges: Sequence[tuple[str, str]]) -> list[str]:
    """Node names so that each comes after its inputs. Raises `InputError` naming a cycle or a missing node."""
    before: dict[str, list[str]] = {node: [] for node in nodes}
    for source, target in edges:
        for end in (source, target):
            if end not in before:
                raise InputError(f"{name}: edge {source} -> {target} names node {end!r}, which is not there; "
                                 "export the graph again")
        before[target].append(source)
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError as error:
        path = " -> ".join(reversed(error.args[1]))
        raise InputError(f"{name}: nodes {path} form a cycle; only a neuron's own state may recur here, so unroll it "
                         "or run the graph elsewhere") from error


def digest(directory: str | Path) -> str:
    """SHA-256 of a checkpoint's weights: which model an export is of."""
    found = hashlib.sha256()
    for part in parts_of(checkpoint.locate(directory) / checkpoint.MODEL):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def write(folder: str | Path, export: Export, tokenizer: Any = None) -> int:
    """Write an export, replacing an older one once the new one is whole; returns bytes.

    Raises `InputError` if `folder` holds something else or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} exists and is not an exported NIR folder; choose another --out")
    partial, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "old"))
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        tensors = {f"{h.name}.{role}": np.ascontiguousarray(x) for h in export.hosts for role, x in h.tensors.items()}
        save_file(tensors, partial / TENSORS)
        for part in export.parts.values():
            graph = nir.NIRGraph(part.nodes, part.edges, metadata=export.about["units"] | {"dt": part.dt})
            nir.write(partial / f"{part.name}.nir", graph, compression=None)
        if tokenizer is not None:
            tokenizer.save(partial / "tokenizer.model")
        (partial / MANIFEST).write_text(json.dumps(_manifest(export), indent=1) + "\n", encoding="utf-8")
        size = sum(file.stat().st_size for file in partial.iterdir())
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; choose another --out") from error
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
    return size


def _manifest(export: Export) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for step in export.steps:
        row = {"name": step.name, "kind": "graph", "reads": step.reads, "writes": step.writes}
        if isinstance(step, Part):
            row |= {"file": f"{step.name}.nir", "nodes": {n: type(x).__name__ for n, x in step.nodes.items()}}
        else:
            row |= {"kind": step.kind, "equation": step.equation, "parameters": step.parameters,
                    "tensors": {role: f"{step.name}.{role}" for role in step.tensors}}
        steps.append(row)
    sites = {name: asdict(site) for name, site in export.sites.items()}
    return {"format": FORMAT, **export.about, "sites": sites, "tensors": TENSORS, "steps": steps}


def read(folder: str | Path) -> Export:
    """Read a folder. Raises `InputError` naming the file or node that is missing, damaged or unknown."""
    folder = Path(folder)
    manifest = _read_manifest(folder / MANIFEST)
    try:
        tensors = load_file(folder / manifest["tensors"])
        steps = [_step(row, folder, tensors) for row in manifest["steps"]]
        sites = {name: Site(**row) for name, row in manifest["sites"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / MANIFEST} lacks or misnames {error}; export the model again") from error
    except InputError:
        raise
    except Exception as error:  # safetensors' own errors have no common type with OSError
        raise InputError(f"cannot read {folder / TENSORS}: {error}; export the model again") from error
    about = {k: v for k, v in manifest.items() if k not in ("format", "sites", "tensors", "steps")}
    export = Export(steps, sites, about)
    for name, site in sites.items():
        if site.part not in export.parts or site.node not in export.parts[site.part].nodes:
            raise InputError(f"{folder / MANIFEST}: site {name} names node {site.node} of {site.part}, which is not "
                             "there; export the model again")
    return export


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; name a folder that "
                         "`symboliclight export --format nir` wrote") from error
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON ({error}); export the model again") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise InputError(f"{file} has no format number; it is not an exported NIR folder")
    if manifest["format"] > FORMAT:
        raise InputError(f"{file} has format {manifest['format']}, this version reads up to {FORMAT}; upgrade")
    return manifest


def _step(row: dict[str, Any], folder: Path, tensors: dict[str, np.ndarray]) -> Part | Host:
    if row["kind"] == "graph":
        nodes, edges, dt = read_graph(folder / Path(row["file"]).name)
        for port in (*row["reads"], *row["writes"]):
            if port not in nodes:
                raise InputError(f"{folder / row['file']} has no node {port!r}; export the model again")
        return Part(row["name"], nodes, edges, row["reads"], row["writes"], dt)
    held = {role: tensors[name] for role, name in row["tensors"].items()}
    return Host(row["name"], row["kind"], row["equation"], row["reads"], row["writes"], row["parameters"], held)


def read_graph(file: Path) -> tuple[dict[str, nir.NIRNode], list[tuple[str, str]], float]:
    """Nodes, edges and dt in seconds of a NIR file.

    Raises `InputError` naming the file, and the nodes that are unknown, missing or in a cycle.
    """
    try:
        with h5py.File(file, "r") as f:
            types = {name: node["type"][()].decode() for name, node in f["node/nodes"].items()}
            edges = [(a.decode(), b.decode()) for a, b in f["node/edges"][()]]
        unknown = [f"{name} ({kind})" for name, kind in types.items() if kind not in NODES]
        if unknown:
            raise InputError(f"{file}: node {', '.join(unknown)} is of a kind that is not run here; known are "
                             f"{', '.join(NODES)}")
        order(str(file), types, edges)
        graph = nir.read(file)
        return graph.nodes, edges, float(graph.metadata["dt"])
    except (OSError, KeyError, ValueError, AssertionError, AttributeError) as error:
        raise InputError(f"cannot read {file} as a NIR graph: {error}; export the model again") from error
