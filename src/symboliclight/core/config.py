"""Frozen configurations, JSON in and out, and the presets.

A run is a function of one `RunConfig`; an ablation is one `dataclasses.replace`.
Lengths are counted in tokens, rates are fractions in [0, 1], potentials and thresholds are dimensionless.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from symboliclight.core.errors import InputError

Code = Literal["binary", "ternary", "integer", "graded", "shifted", "squared"]  # of a spike: ops/spike.py
CODES: tuple[Code, ...] = typing.get_args(Code)
FORMAT = 1  # raised when a field changes meaning; readers refuse a higher number


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@dataclass(frozen=True)
class ModelConfig:
    """Shape and switches of one model. Defaults are SymbolicLight V1 (arXiv 2605.21333)."""

    family: Literal["symboliclight", "gpt2"] = "symboliclight"  # the spiking model, or the baseline
    vocab_size: int = 48_000  # pieces of the tokenizer
    d_model: int = 768  # width of the residual stream
    n_layers: int = 12  # blocks
    n_heads: int = 12  # heads of attention, and of the decay path
    head_dim: int = 64  # width of a head; even
    d_ff: int = 4096  # hidden units of an FFN
    max_seq_len: int = 2048  # tokens; a hard limit for gpt2, the trained horizon for symboliclight
    window: int = 256  # tokens a query looks back
    n_anchors: int = 4  # first tokens that stay visible for ever
    rope_base: float = 10_000.0  # of the angles of rotary embedding
    dropout: float = 0.1  # share of entries dropped in training
    init_std: float = 0.02  # of every weight matrix
    # neurons
    v_threshold: float = 1.0  # potential at which a neuron fires
    leak: float = 0.95  # membrane kept per token
    v_clamp: float = 3.0  # encoder membrane stays in [-v_clamp, v_clamp]
    surrogate_alpha: float = 2.0  # steepness of the ATan surrogate
    lif_gradient: Literal["local", "bptt", "bptt_detached"] = "local"  # of a token alone, of all, reset aside
    learn_neuron: Literal[False, True, "all"] = False  # encoder: leak and threshold by channel; all: every site too
    # what a spike says, by place: ops/spike.py
    encoder_code: Literal["binary", "graded", "shifted"] = "binary"  # of the encoder
    stream_code: Code = "binary"  # of what blocks hand on
    ffn_code: Code = "binary"  # of the hidden units
    spike_levels: int = 4  # largest value of an integer spike
    ffn_threshold: float | None = None  # of the hidden units; None means v_threshold
    ffn_zscore: float | None = None  # z: a token's own threshold, mean + z std of its potentials, where it is more
    surrogate_cut: float | None = None  # distance from the threshold beyond which the surrogate is 0
    # switches for science
    spike_source: Literal["lif", "threshold", "topk", "dense"] = "lif"  # what the encoder sends; dense: its potential
    encoder_threshold: float | None = None  # encoder only; None means v_threshold
    topk_rate: float = 0.1  # active fraction of spike_source="topk"
    block_spikes: bool = True  # False: blocks hand on their continuous stream (dense twin)
    gate: bool = True  # one-bit token gate
    paths: Literal["both", "decay", "attention"] = "both"  # which memories a mixer has
    ffn: Literal["spike", "gelu"] = "spike"  # what hidden units do
    norm: Literal["layer", "none"] = "layer"  # of the residual stream; none: a learned shift, no statistics
    prior: Literal["dynamic", "static", "none"] = "dynamic"  # second path of the head: from the context, fixed, or none
    prior_weight: float = 0.1  # of the prior in the head
    learn_prior_weight: bool = False  # whether training moves it
    aux_layers: tuple[int, ...] = ()  # blocks (from 0) whose stream also feeds the shared head in training
    exit_entropy: float | None = None  # nats; early exit at inference, off by default (published: 0.3)
    # switches of the V1+ search (docs/results/v1-plus.md)
    residual: Literal["post", "pre"] = "post"  # pre: the stream grows, what is read of it is normalised
    spike_fed: bool = False  # q, k, v and the up-projection read spikes
    stream_threshold: float | None = None  # of all spikes of the stream; None means v_threshold
    decay: Literal["head", "channel", "input"] = "head"  # who has a decay rate; input: heads, from each token's spikes
    conv: int = 0  # tokens that a causal convolution by channel mixes into u, keys and values; 0: none
    tie_embeddings: bool = False  # the head multiplies with the embedding

    def __post_init__(self) -> None:
        positive = ("vocab_size", "d_model", "n_layers", "n_heads", "head_dim", "d_ff", "max_seq_len", "v_threshold",
                    "v_clamp", "surrogate_alpha", "rope_base", "init_std")
        for name in positive:
            _require(getattr(self, name) > 0, f"model.{name} must be positive, got {getattr(self, name)}")
        for name in ("window", "n_anchors"):
            _require(getattr(self, name) >= 0, f"model.{name} must not be negative, got {getattr(self, name)}")
        _require(self.d_model == self.n_heads * self.head_dim,
                 f"model.d_model must equal n_heads * head_dim, got {self.d_model} != {self.n_heads} * {self.head_dim}")
        _require(self.head_dim % 2 == 0, f"model.head_dim must be even for RoPE, got {self.head_dim}")
        _require(0 <= self.dropout < 1, f"model.dropout must be in [0, 1), got {self.dropout}")
        _require(0 < self.leak <= 1, f"model.leak must be in (0, 1], got {self.leak}")
        _require(0 < self.topk_rate <= 1, f"model.topk_rate must be in (0, 1], got {self.topk_rate}")
        for name in ("stream_threshold", "encoder_threshold", "ffn_threshold", "surrogate_cut"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"model.{name} must be positive, got {value}")
        _require(1 <= self.spike_levels <= 15, f"model.spike_levels must be 1 to 15, got {self.spike_levels}")
        _require(self.encoder_code == "binary" or self.lif_gradient == "local",
                 f"model.encoder_code {self.encoder_code!r} has a local gradient only; set model.lif_gradient to local")
        _require(self.encoder_code == "binary" or self.spike_source == "lif",
                 f"model.encoder_code {self.encoder_code!r} is one of the LIF neuron; set model.spike_source to lif")
        _require(self.conv == 0 or self.conv > 1, f"model.conv must be 0 or at least 2 tokens, got {self.conv}")
        bad = [i for i in self.aux_layers if not 0 <= i < self.n_layers - 1]
        _require(not bad, f"model.aux_layers must name inner layers 0..{self.n_layers - 2}, got {bad}")


@dataclass(frozen=True)
class DataConfig:
    """Where the token shards are and how their domains are mixed."""

    directory: str = ""  # a folder written by `symboliclight corpus shards`
    weights: dict[str, float] = field(default_factory=dict)  # domain -> weight; empty: in proportion to tokens
    seq_len: int = 512  # tokens per training sequence
    packing: Literal["stream", "documents"] = "stream"  # documents: laid out whole, and padding; state is not reset
    loss: Literal["all", "answers"] = "all"  # answers: not on what users say

    def __post_init__(self) -> None:
        _require(self.seq_len > 0, f"data.seq_len must be positive, got {self.seq_len}")


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation. Defaults are the published V1 recipe."""

    init: str = ""  # a model folder, or a run, whose weights the run begins with; empty: random ones
    tokens: int = 3_000_000_000  # training budget
    batch_size: int = 8  # sequences per micro-batch
    accumulate: int = 1  # micro-batches per optimiser step
    lr: float = 3e-4  # peak learning rate
    min_lr: float = 1e-5  # rate at the end of the cosine
    warmup_steps: int = 2000  # steps from 0 to the peak
    beta1: float = 0.9  # of AdamW
    beta2: float = 0.95  # of AdamW
    weight_decay: float = 0.1  # matrices only: not norms, priors, gates, decays
    clip: float = 1.0  # global gradient norm
    z_loss: float = 1e-4  # weight of the mean squared log of the softmax sum
    aux_weight: float = 0.3  # weight of the mean auxiliary cross-entropy at model.aux_layers
    rate_weight: float = 0.0  # weight of the mean spike over all sites, the firing rate where they are binary; 0: none
    rate_ramp: int = 0  # steps over which that weight grows from 0
    surrogate_alpha_end: float | None = None  # model.surrogate_alpha goes there in a straight line; None: it stays
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the matrices of the blocks; AdamW for the rest
    precision: Literal["auto", "bfloat16", "float32"] = "auto"  # of products; auto: bfloat16 where it is multiplied
    break_even: float | None = None  # active share of spikes up to which a CPU gathers; None: as measured at the start
    seed: int = 42  # of weights, data order and dropout
    log_every: int = 10  # steps
    eval_every: int = 200  # steps; 0 switches validation off
    eval_tokens: int = 65_536  # validation tokens per domain
    save_every: int = 200  # steps
    keep: int = 3  # step checkpoints kept beside best and last
    divergence: float = 2.0  # nats above the running mean loss that trigger a rollback with half the rate
    max_rollbacks: int = 3  # more than these end the run

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_size", "accumulate", "lr", "clip", "log_every", "save_every", "keep",
                     "eval_tokens", "divergence"):
            _require(getattr(self, name) > 0, f"train.{name} must be positive, got {getattr(self, name)}")
        for name in ("min_lr", "warmup_steps", "weight_decay", "z_loss", "eval_every", "aux_weight", "rate_weight",
                     "rate_ramp", "max_rollbacks"):
            _require(getattr(self, name) >= 0, f"train.{name} must not be negative, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"train.{name} must be in [0, 1), got {getattr(self, name)}")
        _require(self.surrogate_alpha_end is None or self.surrogate_alpha_end > 0,
                 f"train.surrogate_alpha_end must be positive, got {self.surrogate_alpha_end}")
        _require(self.break_even is None or 0 <= self.break_even <= 1,
                 f"train.break_even must be in [0, 1], got {self.break_even}")
        _require(self.min_lr <= self.lr, f"train.min_lr must not exceed train.lr, got {self.min_lr} > {self.lr}")


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _require(not self.train.rate_weight or "ternary" not in (self.model.stream_code, self.model.ffn_code),
                 "train.rate_weight weighs nothing of ternary spikes, whose mean is about 0; set it to 0")


_V1_194M = ModelConfig()
_TINY = ModelConfig(vocab_size=4096, d_model=128, n_layers=4, n_heads=4, head_dim=32, d_ff=640, max_seq_len=256,
                    window=64, dropout=0.0)
# init_std 0.02 sqrt(768 / 192): hidden units start as silent as those of v1-194m; at 0.02 nearly none ever fires
_MINI = ModelConfig(vocab_size=8192, d_model=192, n_layers=6, n_heads=3, head_dim=64, d_ff=1024, max_seq_len=512,
                    window=128, dropout=0.0, init_std=0.04)
# mini at half its width: 6M tokens are a little more to it than 32M are to mini
_MICRO = ModelConfig(vocab_size=2048, d_model=96, n_layers=4, n_heads=3, head_dim=32, d_ff=512, max_seq_len=256,
                     window=64, dropout=0.0, init_std=0.0566)


def _plus(base: ModelConfig) -> ModelConfig:
    return dataclasses.replace(base, norm="none", conv=3, stream_threshold=2.0, encoder_threshold=1.25)


def _fed(base: ModelConfig) -> ModelConfig:
    return dataclasses.replace(base, spike_fed=True, residual="pre", decay="input", conv=3, stream_threshold=1.5,
                               encoder_threshold=1.25)


def _gpt2(vocab_size: int, n_layers: int, n_heads: int, head_dim: int, max_seq_len: int, dropout: float) -> ModelConfig:
    d_model = n_heads * head_dim
    return ModelConfig(family="gpt2", vocab_size=vocab_size, d_model=d_model, n_layers=n_layers, n_heads=n_heads,
                       head_dim=head_dim, d_ff=4 * d_model, max_seq_len=max_seq_len, dropout=dropout)


PRESETS: dict[str, ModelConfig] = {
    "v1-194m": _V1_194M,
    "v1-0.8b": ModelConfig(vocab_size=57_344, d_model=1536, n_layers=22, n_heads=24, d_ff=6144, max_seq_len=512,
                           window=512, learn_prior_weight=True),
    "mini": _MINI,
    "tiny": _TINY,
    "micro": _MICRO,
    # what the search chose (docs/results/v1-plus.md), two sizes: with dense-fed matrices, and spikes before most
    "v1-plus": _plus(_MINI),
    "v1-plus-194m": _plus(_V1_194M),
    "v1-fed": _fed(_MINI),
    "v1-fed-194m": _fed(_V1_194M),
    # a graph of neurons and matrices alone: no attention, no norm of live values, no GELU, a clamp out of reach
    "mini-neuro": dataclasses.replace(_MINI, paths="decay", norm="none", prior="none", v_clamp=1000.0),
    "gpt2-124m": _gpt2(48_000, 12, 12, 64, 512, 0.1),
    "gpt2-201m": _gpt2(48_000, 12, 16, 64, 512, 0.1),
    "gpt2-mini": _gpt2(8192, 6, 4, 64, 512, 0.0),
    "gpt2-tiny": _gpt2(4096, 3, 6, 32, 256, 0.0),
}


def preset(name: str) -> ModelConfig:
    """Return the named preset; an unknown name raises `InputError` with the known ones."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]


C = TypeVar("C")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values of a config, nested, with tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[C], values: Any, where: str = "config") -> C:
    """Build `cls` from plain values; unknown fields and wrong types raise `InputError` naming them."""
    _require(isinstance(values, dict), f"{where}: expected an object with fields, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    _require(not unknown, f"{where}: unknown field {', '.join(unknown)}; written by a newer symboliclight, or misspelt")
    return cls(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one JSON value against a field's type and return it in that type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is Literal:
        _require(value in args, f"{where} must be one of {', '.join(map(str, args))}, got {value!r}")
        return args[args.index(value)]
    if origin is types.UnionType:
        return None if value is None else _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), f"{where} must be a list, got {value!r}")
        return tuple(_convert(args[0], v, where) for v in value)
    if origin is dict:
        _require(isinstance(value, dict), f"{where} must be an object, got {value!r}")
        return {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number:
        _require(abs(value) < float("inf"), f"{where} must be finite, got {value!r}")
        return float(value)
    _require(isinstance(value, hint) and (hint is bool or not isinstance(value, bool)),
             f"{where} must be {hint.__name__}, got {value!r}")
    return value


def save_json(path: str | Path, **sections: Any) -> None:
    """Write configs, or a truth, as one JSON file `{"format": 1, "model": {...}, ...}`."""
    body = {"format": FORMAT, **{name: config if isinstance(config, bool) else to_dict(config)
                                 for name, config in sections.items()}}
    Path(path).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def load_json(path: str | Path) -> dict[str, Any]:
    """Read a file written by `save_json`, refusing what is not JSON or comes from the future."""
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); restore it from a good copy") from error
    _require(isinstance(body, dict), f"{path} must hold a JSON object; restore it from a good copy")
    written = body.pop("format", None)
    _require(isinstance(written, int), f"{path} has no format number; it is not a symboliclight config")
    _require(written <= FORMAT, f"{path} has format {written}, this version reads up to {FORMAT}; upgrade")
    return body


def load_run(path: str | Path) -> RunConfig:
    """The run in a JSON file with sections model, data and train, such as run.json; a missing one is the default."""
    body = load_json(path)
    known = [f.name for f in dataclasses.fields(RunConfig) if f.name in body]
    return from_dict(RunConfig, {name: body[name] for name in known}, str(path))
