"""The weights of one model as the runtime takes them, from a checkpoint or from an exported folder."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from symboliclight import checkpoint
from symboliclight.config import ModelConfig, beyond_v1
from symboliclight.engine.files import finite, map_tensors
from symboliclight.engine.pack import (
    FORMAT,
    PRECISIONS,
    Precision,
    kind_of,
    pack,
    packed_shapes,
    sketch,
    sketch_shapes,
    to_bfloat16,
)
from symboliclight.errors import InputError

MAX_STATE = 1 << 34  # bytes a sequence: a config that asks for more is damaged
MAX_INPUTS = 1 << 16  # of one matrix: 32-bit sums of 8-bit products hold no more


@dataclass(frozen=True)
class Place:
    """A weight matrix: its name in the checkpoint, its site in the runtime and its shape.

    spikes: whether spikes feed it; sensitive: 4 bits would cost too much perplexity.
    """

    name: str
    site: str
    layer: int
    outs: int
    ins: int
    spikes: bool = False
    sensitive: bool = False


@dataclass(frozen=True)
class Matrix:
    """A matrix in a layout of the runtime."""

    site: str
    layer: int
    format: int
    by_input: bool
    outs: int
    ins: int
    data: np.ndarray
    scale: np.ndarray | None


@dataclass(frozen=True)
class Weights:
    precision: str
    matrices: list[Matrix]
    vectors: list[tuple[str, int, np.ndarray]]  # (site, layer, float32)
    prior_weight: float


def places(c: ModelConfig) -> Iterator[Place]:
    """All matrices but the embedding."""
    D, F, V = c.d_model, c.d_ff, c.vocab_size
    for i in range(c.n_layers):
        if c.paths != "attention":
            driven = c.block_spikes if i else c.spike_source != "dense"
            yield Place(f"blocks.{i}.mixer.tcam.weight", "tcam", i, D, D, driven)
        if c.paths != "decay":
            yield from (Place(f"blocks.{i}.mixer.{x}.weight", x, i, D, D) for x in "qkv")
        yield Place(f"blocks.{i}.mixer.out.weight", "out", i, D, D)
        yield Place(f"blocks.{i}.ffn.up.weight", "up", i, F, D)
        yield Place(f"blocks.{i}.ffn.down.weight", "down", i, D, F, c.ffn == "spike")
    yield Place("head.out.weight", "head", 0, V, D)
    if c.prior == "dynamic":
        yield Place("head.prior_down.weight", "prior_down", 0, D // 4, D, sensitive=True)
        yield Place("head.prior_up.weight", "prior_up", 0, V, D // 4, sensitive=True)


def sketched(c: ModelConfig, precision: Precision) -> list[Place]:
    """Matrices with a sketch beside them: those whose sums meet a threshold, or of which only the largest matter."""
    sites = {"up"} if c.ffn == "spike" else set()
    if c.prior != "static":
        sites |= {"head", "prior_up"}
    return [p for p in places(c) if precision == "certified" and p.site in sites]


def vector_shapes(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that is not a matrix."""
    D = c.d_model
    shapes: dict[str, tuple[int, ...]] = {"encoder.norm.weight": (D,), "encoder.norm.bias": (D,)}
    if c.learn_neuron:
        shapes |= {"encoder.neuron.leak": (D,), "encoder.neuron.threshold": (D,)}
    for i in range(c.n_layers):
        shapes |= {f"blocks.{i}.{room}.norm.{part}": (D,) for room in ("mixer", "ffn") for part in ("weight", "bias")}
        if c.paths != "attention":
            shapes[f"blocks.{i}.mixer.decay_raw"] = (c.n_heads,)
        if c.paths == "both":
            shapes[f"blocks.{i}.mixer.attn_gate"] = (1,)
    if c.prior == "static":
        shapes["head.log_prior"] = (c.vocab_size,)
    if c.learn_prior_weight and c.prior != "none":
        shapes["head.prior_weight"] = ()
    return shapes


def read(file: Path, config: ModelConfig, precision: Precision | None, sparse: bool) -> Weights:
    """Map and check a weight file, and bring it into the layouts of `precision`."""
    if precision is not None and precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    tensors, _ = map_tensors(file)
    _check_config(config, len(tensors), file)
    found = exported(tensors)
    if found is None:
        return from_tensors(config, tensors, precision or "float32", sparse, file)
    if precision not in (None, found) or not sparse:
        raise InputError(f"{file} was exported at {found}; load it as it is, or use the checkpoint it was made from")
    expected = {name: SimpleNamespace(dtype=dtype, shape=shape)
                for name, dtype, shape in _exported_shapes(config, found)}
    checkpoint.check_tensors(file, tensors, expected)
    _check_finite(file, tensors)
    return _assemble(config, tensors, found, True)


def read_checkpoint(file: Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """The float32 tensors of a checkpoint, checked and mapped."""
    tensors, _ = map_tensors(file)
    _check_config(config, len(tensors), file)
    if exported(tensors) is not None:
        raise InputError(f"{file} is already exported; export from the checkpoint it was made from")
    _check_checkpoint(config, tensors, file)
    return tensors


def exported(tensors: Collection[str]) -> Precision | None:
    """The precision of an exported folder with tensors of these names; None for a checkpoint."""
    return next((p for p in PRECISIONS if f"encoder.embedding.weight.{p}" in tensors), None)


def _check_checkpoint(config: ModelConfig, tensors: Mapping[str, np.ndarray], file: Path) -> None:
    shapes = {p.name: (p.outs, p.ins) for p in places(config)} | vector_shapes(config)
    shapes["encoder.embedding.weight"] = (config.vocab_size, config.d_model)
    float32 = np.dtype(np.float32)
    expected = {name: SimpleNamespace(dtype=float32, shape=shape) for name, shape in shapes.items()}
    checkpoint.check_tensors(file, tensors, expected)
    _check_finite(file, tensors)


def from_tensors(config: ModelConfig, tensors: Mapping[str, np.ndarray], precision: Precision = "float32",
                 sparse: bool = True, file: Path = Path("weights")) -> Weights:
    """Weights from the float32 tensors of a checkpoint; `file` is named in errors."""
    _check_checkpoint(config, tensors, file)
    return _assemble(config, exported_tensors(config, tensors, precision, sparse), precision, sparse)


def exported_tensors(config: ModelConfig, tensors: Mapping[str, np.ndarray], precision: Precision,
                     sparse: bool = True) -> dict[str, np.ndarray]:
    """What an exported folder holds, from the float32 tensors of a checkpoint."""
    out = {name: tensors[name] for name in vector_shapes(config)}
    embedding = tensors["encoder.embedding.weight"]
    out[f"encoder.embedding.weight.{precision}"] = embedding if _wide(precision) else to_bfloat16(embedding)
    for place in places(config):
        kind = kind_of(precision, place.spikes and sparse, place.sensitive)
        data, scale = pack(tensors[place.name], kind)
        out[f"{place.name}.{kind}"] = data
        if scale is not None:
            out[f"{place.name}.{kind}.scale"] = scale
    for place in sketched(config, precision):
        out |= {f"{place.name}.sketch.{part}": array for part, array in sketch(tensors[place.name]).items()}
    return out


def _wide(precision: Precision) -> bool:
    return precision in ("float32", "certified")


def _exported_shapes(config: ModelConfig, precision: Precision) -> Iterator[tuple[str, np.dtype, tuple[int, ...]]]:
    yield from ((name, np.dtype(np.float32), shape) for name, shape in vector_shapes(config).items())
    dtype = np.dtype(np.float32 if _wide(precision) else np.uint16)
    yield f"encoder.embedding.weight.{precision}", dtype, (config.vocab_size, config.d_model)
    for place in places(config):
        kind = kind_of(precision, place.spikes, place.sensitive)
        for suffix, (dtype, shape) in zip(("", ".scale"), packed_shapes(place.outs, place.ins, kind), strict=False):
            yield f"{place.name}.{kind}{suffix}", dtype, shape
    for place in sketched(config, precision):
        for part, (dtype, shape) in sketch_shapes(place.outs, place.ins).items():
            yield f"{place.name}.sketch.{part}", dtype, shape


def _assemble(c: ModelConfig, tensors: Mapping[str, np.ndarray], precision: Precision, sparse: bool) -> Weights:
    embedding = tensors[f"encoder.embedding.weight.{precision}"]
    stored = FORMAT["float32" if embedding.dtype == np.float32 else "bfloat16"]
    matrices = [Matrix("embedding", 0, stored, True, c.vocab_size, c.d_model, embedding, None)]
    for p in places(c):
        by_input = p.spikes and sparse
        kind = kind_of(precision, by_input, p.sensitive)
        data, scale = tensors[f"{p.name}.{kind}"], tensors.get(f"{p.name}.{kind}.scale")
        matrices.append(Matrix(p.site, p.layer, FORMAT[kind.split(".")[0]], by_input, p.outs, p.ins, data, scale))
    weight = float(tensors.get("head.prior_weight", c.prior_weight))
    vectors = list(_vectors(c, tensors, weight))
    for p in sketched(c, precision):
        parts = {part: tensors[f"{p.name}.sketch.{part}"] for part in sketch_shapes(p.outs, p.ins)}
        site = f"{p.site}.sketch"
        matrices.append(Matrix(site, p.layer, FORMAT["int8"], False, p.outs, p.ins, parts["data"], parts["scale"]))
        vectors += [(f"{site}.{part}", p.layer, parts[part]) for part in ("lost", "kept")]
    return Weights(precision, matrices, vectors, weight)


def _vectors(c: ModelConfig, tensors: Mapping[str, np.ndarray], prior: float) -> Iterator[tuple[str, int, np.ndarray]]:
    """Norms as they are; rates, mixing shares, thresholds and RoPE frequencies as the runtime wants them."""
    threshold = c.v_threshold if c.encoder_threshold is None else c.encoder_threshold
    for name, value in (("leak", c.leak), ("threshold", threshold)):
        yield name, 0, tensors.get(f"encoder.neuron.{name}", np.full(c.d_model, value, np.float32))
    exponent = -np.arange(0, c.head_dim, 2, dtype=np.float32) / np.float32(c.head_dim)
    yield "inverse", 0, (c.rope_base ** exponent.astype(np.float64)).astype(np.float32)
    yield from ((f"encoder_norm.{part}", 0, tensors[f"encoder.norm.{part}"]) for part in ("weight", "bias"))
    for i in range(c.n_layers):
        for room, part in product(("mixer", "ffn"), ("weight", "bias")):
            yield f"{room}_norm.{part}", i, tensors[f"blocks.{i}.{room}.norm.{part}"]
        if c.paths != "attention":
            yield "decay", i, _sigmoid(tensors[f"blocks.{i}.mixer.decay_raw"])
        share = _sigmoid(tensors[f"blocks.{i}.mixer.attn_gate"]) if c.paths == "both" else np.ones(1, np.float32)
        yield "fuse", i, share
    if c.prior == "static":
        yield "bias", 0, np.float32(prior) * tensors["head.log_prior"]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def _check_config(c: ModelConfig, tensors: int, file: Path) -> None:
    """Refuse what no file could hold before anything is sized by it."""
    if c.family != "symboliclight":
        raise InputError(f"the runtime runs symboliclight models, {file.parent} holds {c.family}; use the torch model")
    if c.norm != "layer":
        raise InputError(f"the runtime needs model.norm layer, {file.parent} has {c.norm}; use the torch model")
    if (found := beyond_v1(c)) is not None:
        name, ours, theirs = found
        raise InputError(f"the runtime needs model.{name} {ours}, {file.parent} has {theirs}; use the torch model")
    if c.n_layers > tensors:
        raise InputError(f"{file} has {tensors} tensors, too few for model.n_layers {c.n_layers}; "
                         "restore all from the same checkpoint")
    if max(c.d_model, c.d_ff) > MAX_INPUTS:
        raise InputError(f"{file.parent}: model.d_model and model.d_ff must be at most {MAX_INPUTS}")
    if 8 * c.n_layers * (c.window + c.n_anchors) * c.d_model > MAX_STATE:
        raise InputError(f"{file.parent}: model.window and model.n_anchors ask for a state of more than "
                         f"{MAX_STATE >> 30} GiB a sequence; restore config.json from a good copy")


def _check_finite(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    for name, array in tensors.items():
        if not finite(array):
            raise InputError(f"{file}: {name} holds NaN or infinity; use an earlier checkpoint")

