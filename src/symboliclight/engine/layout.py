"""What a model holds by its configuration: matrices and vectors, their names in the checkpoint and in the runtime."""

from collections.abc import Iterator
from dataclasses import dataclass

from symboliclight.core.config import ModelConfig
from symboliclight.engine.pack import CERTIFIED, Precision

EMBEDDING = "encoder.embedding.weight"


@dataclass(frozen=True)
class Place:
    """A weight matrix: its name, its site in the runtime and its shape.

    spikes: whether spikes feed it; sensitive: 4 bits would cost too much perplexity; tied: it is the embedding;
    judged: its sums meet a threshold, or only the largest of them matter.
    """

    name: str
    site: str
    layer: int
    outs: int
    ins: int
    spikes: bool = False
    sensitive: bool = False
    tied: bool = False
    judged: bool = False

    @property
    def source(self) -> str:
        """The tensor of the checkpoint that it is."""
        return EMBEDDING if self.tied else self.name


def places(c: ModelConfig) -> Iterator[Place]:
    """All matrices but the embedding."""
    D, F, V, chosen = c.d_model, c.d_ff, c.vocab_size, c.prior != "static"
    for i in range(c.n_layers):
        driven = c.block_spikes if i else c.spike_source != "dense"
        if c.paths != "attention":
            yield Place(f"blocks.{i}.mixer.tcam.weight", "tcam", i, D, D, driven)
            if c.decay == "input":
                yield Place(f"blocks.{i}.mixer.decay_gate.weight", "decay_gate", i, c.n_heads, D, driven, True)
        if c.paths != "decay":
            yield from (Place(f"blocks.{i}.mixer.{x}.weight", x, i, D, D, driven and c.spike_fed) for x in "qkv")
        yield Place(f"blocks.{i}.mixer.out.weight", "out", i, D, D)
        fed = c.spike_fed and c.block_spikes
        yield Place(f"blocks.{i}.ffn.up.weight", "up", i, F, D, fed, judged=c.ffn == "spike" and not fed)
        yield Place(f"blocks.{i}.ffn.down.weight", "down", i, D, F, c.ffn == "spike")
    yield Place("head.out.weight", "head", 0, V, D, tied=c.tie_embeddings, judged=chosen)
    if c.prior == "dynamic":
        yield Place("head.prior_down.weight", "prior_down", 0, D // 4, D, sensitive=True)
        yield Place("head.prior_up.weight", "prior_up", 0, V, D // 4, sensitive=True, judged=True)


def sketched(c: ModelConfig, precision: Precision) -> list[Place]:
    """Matrices with a sketch beside them. One that spikes feed needs none: few of its inputs are read."""
    return [p for p in places(c) if precision in CERTIFIED and p.judged]


def with_residual(c: ModelConfig, precision: Precision) -> list[Place]:
    """Matrices of 4 bits of which some rows keep what that leaves of them: the head, and the tokens met most often."""
    return [p for p in places(c) if precision == "int4" and p.site == "head"]


def vector_shapes(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that is not a matrix."""
    D, norm = c.d_model, ("weight", "bias") if c.norm == "layer" else ("bias",)
    shapes: dict[str, tuple[int, ...]] = {"encoder.norm.weight": (D,), "encoder.norm.bias": (D,)}
    if c.learn_neuron:
        learned = "threshold_log" if c.learn_neuron == "all" else "threshold"
        shapes |= {"encoder.neuron.leak": (D,), f"encoder.neuron.{learned}": (D,)}
    for i in range(c.n_layers):
        shapes |= {f"blocks.{i}.{room}.norm.{part}": (D,) for room in ("mixer", "ffn") for part in norm}
        shapes |= {name: (size,) for name, _, size in learned_thresholds(c, i)}
        shapes |= {f"blocks.{i}.mixer.conv_{x}": (c.conv, D) for x in convolved(c)}
        if c.paths != "attention":
            shapes[f"blocks.{i}.mixer.decay_raw"] = (D if c.decay == "channel" else c.n_heads,)
        if c.paths == "both":
            shapes[f"blocks.{i}.mixer.attn_gate"] = (1,)
    if c.prior == "static":
        shapes["head.log_prior"] = (c.vocab_size,)
    if c.learn_prior_weight and c.prior != "none":
        shapes["head.prior_weight"] = ()
    return shapes


def checkpoint_shapes(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a checkpoint."""
    matrices = {p.name: (p.outs, p.ins) for p in places(c) if not p.tied}
    return matrices | vector_shapes(c) | {EMBEDDING: (c.vocab_size, c.d_model)}


def learned_thresholds(c: ModelConfig, layer: int) -> Iterator[tuple[str, str, int]]:
    """Name in the checkpoint, site in the runtime and units of a layer's thresholds that are learned."""
    read = c.block_spikes and layer < c.n_layers - 1
    for there, room, site, units in ((c.spike_fed and c.block_spikes, "ffn.spike", "mixer_level", c.d_model),
                                     (c.ffn == "spike", "ffn.activation", "ffn_level", c.d_ff),
                                     (read, "spike", "level", c.d_model)):
        if there and c.learn_neuron == "all":
            yield f"blocks.{layer}.{room}.threshold_log", site, units


def stream_threshold(c: ModelConfig) -> float:
    """θ of the spikes of the stream."""
    return c.v_threshold if c.stream_threshold is None else c.stream_threshold


def ffn_threshold(c: ModelConfig) -> float:
    """θ of the hidden units."""
    return c.v_threshold if c.ffn_threshold is None else c.ffn_threshold


def convolved(c: ModelConfig) -> str:
    """What convolutions pass over: input u of the decay, keys and values."""
    return {"both": "ukv", "decay": "u", "attention": "kv"}[c.paths] if c.conv else ""
