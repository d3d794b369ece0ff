"""The weights of one model as the runtime takes them, from a checkpoint or from an exported folder."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np

from symboliclight.core import checkpoint
from symboliclight.core.config import ModelConfig
from symboliclight.core.errors import InputError
from symboliclight.engine.aligned import lined, together
from symboliclight.engine.files import finite, map_tensors
from symboliclight.engine.layout import (
    EMBEDDING,
    Place,
    checkpoint_shapes,
    convolved,
    ffn_threshold,
    learned_thresholds,
    places,
    sketched,
    stream_threshold,
    vector_shapes,
    with_residual,
)
from symboliclight.engine.pack import (
    CERTIFIED,
    LANES,
    PRECISIONS,
    Precision,
    format_of,
    kind_of,
    pack,
    packed_shapes,
    residual,
    residual_shapes,
    sketch,
    sketch_shapes,
)
from symboliclight.engine.rounding import from_bfloat16, to_bfloat16

MAX_STATE = 1 << 34  # bytes a sequence: a config that asks for more is damaged
FREQUENT = 8  # one token of so many counts as frequent
MAX_INPUTS = 1 << 16  # of one matrix: 32-bit sums of 8-bit products hold no more


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
    tokens: np.ndarray | None  # ids whose logits have a residual, rising; their matrix is "head.residual"


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
    if any(f"{place.name}.residual.tokens" not in tensors for place in with_residual(config, found)):
        raise InputError(f"{file} lacks the residual of its head, as int4 of earlier versions did; export again")
    expected = {name: SimpleNamespace(dtype=dtype, shape=shape)
                for name, dtype, shape in _exported_shapes(config, found)}
    checkpoint.check_tensors(file, tensors, expected)
    _check_finite(file, tensors)
    for place in with_residual(config, found):
        _check_tokens(file, config, tensors[f"{place.name}.residual.tokens"])
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
    return next((p for p in PRECISIONS if f"{EMBEDDING}.{p}" in tensors), None)


def _check_checkpoint(config: ModelConfig, tensors: Mapping[str, np.ndarray], file: Path) -> None:
    float32 = np.dtype(np.float32)
    expected = {name: SimpleNamespace(dtype=float32, shape=shape) for name, shape in checkpoint_shapes(config).items()}
    checkpoint.check_tensors(file, tensors, expected)
    _check_finite(file, tensors)


def from_tensors(config: ModelConfig, tensors: Mapping[str, np.ndarray], precision: Precision = "float32",
                 sparse: bool = True, file: Path = Path("weights")) -> Weights:
    """Weights from the float32 tensors of a checkpoint; `file` is named in errors."""
    _check_checkpoint(config, tensors, file)
    return _assemble(config, together(exported_tensors(config, tensors, precision, sparse)), precision, sparse)


def exported_tensors(config: ModelConfig, tensors: Mapping[str, np.ndarray], precision: Precision,
                     sparse: bool = True, moments: Mapping[str, np.ndarray] = MappingProxyType({})
                     ) -> dict[str, np.ndarray]:
    """What an exported folder holds, from the float32 tensors of a checkpoint; moments as of `calibration.moments`."""
    out = {name: tensors[name] for name in vector_shapes(config)}
    embedding = tensors[EMBEDDING]
    out[f"{EMBEDDING}.{precision}"] = embedding if _wide(precision) else lined(to_bfloat16(embedding))
    for place in _stored(config, precision):
        kind = _kind(place, precision, sparse)
        data, scale = pack(tensors[place.source], kind, moments.get(place.name))
        out[f"{place.name}.{kind}"] = data
        if scale is not None:
            out[f"{place.name}.{kind}.scale"] = scale
    for place in sketched(config, precision):
        weight = tensors[place.source] if _wide(precision) else from_bfloat16(to_bfloat16(tensors[place.source]))
        out |= {f"{place.name}.sketch.{part}": array for part, array in sketch(weight).items()}
    for place in with_residual(config, precision):
        kind, rows = _kind(place, precision), frequent(embedding, moments.get("tokens"))
        left = residual(tensors[place.source], out[f"{place.name}.{kind}"], out[f"{place.name}.{kind}.scale"], rows)
        out |= {f"{place.name}.residual.{part}": array for part, array in left.items()}
    return out


def frequent(embedding: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Ids of the eighth of the tokens that text holds most often, rising, int64.

    counts: (V,) of each in some text. Among equal counts, and without any, those with the longest rows of `embedding`
    (V, D) go first: training moves the rows of frequent tokens farthest.
    """
    counts = np.zeros(len(embedding)) if counts is None else counts
    order = np.lexsort((-np.square(embedding, dtype=np.float64).sum(1), -counts))
    return np.sort(order[: _frequent_tokens(len(embedding))])


def _frequent_tokens(vocab_size: int) -> int:
    return max(vocab_size // FREQUENT, 1)


def _kind(place: Place, precision: Precision, sparse: bool = True) -> str:
    """Its kind: the values are the same on the sparse path and on the dense one, only their order differs."""
    return kind_of(precision, place.spikes and sparse, place.sensitive or place.spikes, place.judged)


def _wide(precision: Precision) -> bool:
    """Is the embedding float32?"""
    return CERTIFIED.get(precision, precision) == "float32"


def _stored(c: ModelConfig, precision: Precision) -> list[Place]:
    """Matrices that an exported folder holds beside the embedding."""
    return [p for p in places(c) if not _is_embedding(p, precision)]


def _is_embedding(place: Place, precision: Precision) -> bool:
    """Is it a tied head that lies row by row, as the embedding does?"""
    return place.tied and _kind(place, precision) in ("float32", "bfloat16.rows")


def _exported_shapes(config: ModelConfig, precision: Precision) -> Iterator[tuple[str, np.dtype, tuple[int, ...]]]:
    yield from ((name, np.dtype(np.float32), shape) for name, shape in vector_shapes(config).items())
    dtype = np.dtype(np.float32 if _wide(precision) else np.uint16)
    yield f"{EMBEDDING}.{precision}", dtype, (config.vocab_size, config.d_model)
    for place in _stored(config, precision):
        kind = _kind(place, precision)
        for suffix, (dtype, shape) in zip(("", ".scale"), packed_shapes(place.outs, place.ins, kind), strict=False):
            yield f"{place.name}.{kind}{suffix}", dtype, shape
    for place in sketched(config, precision):
        for part, (dtype, shape) in sketch_shapes(place.outs, place.ins).items():
            yield f"{place.name}.sketch.{part}", dtype, shape
    for place in with_residual(config, precision):
        for part, (dtype, shape) in residual_shapes(_frequent_tokens(place.outs), place.ins).items():
            yield f"{place.name}.residual.{part}", dtype, shape


def _assemble(c: ModelConfig, tensors: Mapping[str, np.ndarray], precision: Precision, sparse: bool) -> Weights:
    embedding = tensors[f"{EMBEDDING}.{precision}"]
    stored = format_of("float32" if embedding.dtype == np.float32 else "bfloat16")
    matrices = [Matrix("embedding", 0, stored, True, c.vocab_size, c.d_model, embedding, None)]
    for p in places(c):
        kind, by_input = _kind(p, precision, sparse), p.spikes and sparse
        name = f"{p.name}.{kind}"
        data, scale = embedding if _is_embedding(p, precision) else tensors[name], tensors.get(f"{name}.scale")
        matrices.append(Matrix(p.site, p.layer, format_of(kind), by_input, p.outs, p.ins, data, scale))
    weight = float(tensors.get("head.prior_weight", c.prior_weight))
    vectors = list(_vectors(c, tensors, weight))
    for p in sketched(c, precision):
        parts = {part: tensors[f"{p.name}.sketch.{part}"] for part in sketch_shapes(p.outs, p.ins)}
        site = f"{p.site}.sketch"
        matrices.append(Matrix(site, p.layer, format_of("int8"), False, p.outs, p.ins, parts["data"], parts["scale"]))
        vectors += [(f"{site}.{part}", p.layer, parts[part]) for part in ("lost", "kept")]
    tokens = None
    for p in with_residual(c, precision):
        parts = {part: tensors[f"{p.name}.residual.{part}"] for part in residual_shapes(0, p.ins)}
        site, tokens = f"{p.site}.residual", parts["tokens"]
        form = format_of("int4")
        matrices.append(Matrix(site, p.layer, form, False, len(tokens), p.ins, parts["data"], parts["scale"]))
    return Weights(precision, matrices, vectors, weight, tokens)


def _vectors(c: ModelConfig, tensors: Mapping[str, np.ndarray], prior: float) -> Iterator[tuple[str, int, np.ndarray]]:
    """Norms as they are; rates, mixing shares, thresholds and RoPE frequencies as the runtime wants them."""
    threshold = c.v_threshold if c.encoder_threshold is None else c.encoder_threshold
    yield "leak", 0, tensors.get("encoder.neuron.leak", np.full(c.d_model, c.leak, np.float32))
    log = tensors.get("encoder.neuron.threshold_log", np.zeros(c.d_model, np.float32))
    yield "threshold", 0, tensors.get("encoder.neuron.threshold", _scaled(threshold, log))
    exponent = -np.arange(0, c.head_dim, 2, dtype=np.float32) / np.float32(c.head_dim)
    yield "inverse", 0, (c.rope_base ** exponent.astype(np.float64)).astype(np.float32)
    yield from ((f"encoder_norm.{part}", 0, tensors[f"encoder.norm.{part}"]) for part in ("weight", "bias"))
    for i in range(c.n_layers):
        yield from ((site, i, array) for site, array in _layer_vectors(c, tensors, i))
    if c.prior == "static":
        yield "bias", 0, np.float32(prior) * tensors["head.log_prior"]


def _layer_vectors(c: ModelConfig, tensors: Mapping[str, np.ndarray], i: int) -> Iterator[tuple[str, np.ndarray]]:
    for room in ("mixer", "ffn"):
        found = {part: tensors.get(f"blocks.{i}.{room}.norm.{part}") for part in ("weight", "bias")}
        yield from ((f"{room}_norm.{part}", array) for part, array in found.items() if array is not None)
    for name, site, units in learned_thresholds(c, i):
        level = _scaled(ffn_threshold(c) if site == "ffn_level" else stream_threshold(c), tensors[name])
        yield site, np.pad(level, (0, -units % LANES)) if site == "ffn_level" else level
    yield from ((f"conv_{x}", tensors[f"blocks.{i}.mixer.conv_{x}"]) for x in convolved(c))
    if c.paths != "attention":
        raw = tensors[f"blocks.{i}.mixer.decay_raw"]
        yield "decay", np.repeat(raw if c.decay == "input" else _sigmoid(raw), c.d_model // len(raw))
    yield "fuse", _sigmoid(tensors[f"blocks.{i}.mixer.attn_gate"]) if c.paths == "both" else np.ones(1, np.float32)


def _scaled(threshold: float, log: np.ndarray) -> np.ndarray:
    """θ e^w in float32, infinity where it is larger."""
    with np.errstate(over="ignore"):
        return (np.float32(threshold) * np.exp(log.astype(np.float64))).astype(np.float32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def _check_config(c: ModelConfig, tensors: int, file: Path) -> None:
    """Refuse what no file could hold before anything is sized by it."""
    if c.family != "symboliclight":
        raise InputError(f"the runtime runs symboliclight models, {file.parent} holds {c.family}; use the torch model")
    if c.n_layers > tensors:
        raise InputError(f"{file} has {tensors} tensors, too few for model.n_layers {c.n_layers}; "
                         "restore all from the same checkpoint")
    if max(c.d_model, c.d_ff) > MAX_INPUTS:
        raise InputError(f"{file.parent}: model.d_model and model.d_ff must be at most {MAX_INPUTS}")
    if 8 * c.n_layers * (c.window + c.n_anchors + 2 * c.conv) * c.d_model > MAX_STATE:
        raise InputError(f"{file.parent}: model.window, model.n_anchors and model.conv ask for a state of more than "
                         f"{MAX_STATE >> 30} GiB a sequence; restore config.json from a good copy")


def _check_finite(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    for name, array in tensors.items():
        if not finite(array):
            raise InputError(f"{file}: {name} holds NaN or infinity; use an earlier checkpoint")


def _check_tokens(file: Path, c: ModelConfig, tokens: np.ndarray) -> None:
    if tokens[0] < 0 or tokens[-1] >= c.vocab_size or np.any(tokens[1:] <= tokens[:-1]):
        raise InputError(f"{file}: the tokens that have a residual do not rise within the vocabulary; export again")
