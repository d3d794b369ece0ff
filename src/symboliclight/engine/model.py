"""The runtime behind the seam: `engine(tokens, state) -> (logits, state)` in numpy, without torch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from symboliclight.core import checkpoint
from symboliclight.core.config import CODES, ModelConfig, from_dict, load_json
from symboliclight.core.errors import InputError
from symboliclight.core.processor import native_module
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.engine.files import map_tensors
from symboliclight.engine.layout import ffn_threshold, stream_threshold
from symboliclight.engine.pack import Precision
from symboliclight.engine.state import State, check, initial_state, key_bytes, key_dtype, shapes
from symboliclight.engine.weights import Weights, exported, exported_tensors, read, read_checkpoint

ROWS = 256  # tokens that share one reading of the weights
SOURCES, PRIORS = ("lif", "threshold", "topk", "dense"), ("none", "static", "dynamic")  # csrc/engine/engine.hpp


def load(directory: str | Path, precision: Precision | None = None, threads: int | None = None,
         sparse: bool = True) -> "Engine":
    """The engine of a checkpoint, or of a folder that `symboliclight export` wrote.

    Args: precision is one of `pack.PRECISIONS`; None: that of an exported folder, else float32. threads: default all
        cores. sparse=False reads every weight of spike-fed matrices, the same weights, for comparison.
    Raises `InputError` if a file is missing or damaged, or was exported at another precision.
    """
    directory = checkpoint.locate(directory)
    config = _config(directory)
    weights = read(directory / checkpoint.MODEL, config, precision, sparse)
    model = Engine(config, weights, threads)
    model.source = (str(directory.resolve()), precision, threads, sparse)
    return model


def export(directory: str | Path, out: str | Path, precision: Precision,
           moments: Mapping[str, np.ndarray] = MappingProxyType({})) -> None:
    """Write a folder with the weights of a checkpoint as the runtime takes them at `precision`, ready to be mapped.

    Args: moments: what `calibration.moments` found on text; without them a weight of 4 bits is the level nearest to it.
    Raises `InputError` if the checkpoint is missing or damaged, was exported before, or `out` cannot be written.
    """
    directory = checkpoint.locate(directory)
    config = _config(directory)
    tensors = read_checkpoint(directory / checkpoint.MODEL, config)
    found = exported_tensors(config, tensors, precision, moments=moments)
    checkpoint.save(out, config, found, Tokenizer.load(directory), turns=checkpoint.has_turns(directory))


def exported_precision(directory: str | Path) -> Precision | None:
    """The precision at which a folder was exported; None for a checkpoint."""
    return exported(map_tensors(checkpoint.locate(directory) / checkpoint.MODEL)[0])


def _config(directory: Path) -> ModelConfig:
    file = directory / checkpoint.CONFIG
    config = from_dict(ModelConfig, load_json(file).get("model"), str(file))
    if config.ffn_zscore is not None:
        raise InputError(f"{file}: the runtime has no thresholds of a token's own (model.ffn_zscore "
                         f"{config.ffn_zscore}); use the model in PyTorch")
    return config


@dataclass
class Engine:
    """A loaded model. Calls are serialised; states are independent of it and of each other.

    No text is in it, so `copy.copy` and `copy.deepcopy` give the engine itself. It pickles as the folder that it was
    loaded from, to be loaded again.
    """

    config: ModelConfig
    weights: Weights
    threads: int | None = None
    isa: str | None = None  # one of `_engine.isas()`; None: the fastest
    source: tuple[Any, ...] | None = field(default=None, init=False)  # arguments of `load`

    def __post_init__(self) -> None:
        try:
            native = native_module("_engine")
        except ImportError as error:
            raise InputError(f"this installation has no native runtime ({error}): it is compiled where there is a C++ "
                             "compiler; install GCC or Clang and run `pip install .` again") from error
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be positive, got {self.threads}")
        threads = self.threads or _cores()
        self._native = native.Engine(_sizes(self.config), _switches(self.config, self.weights), threads)
        self.threads = self._native.threads
        if self.isa is not None:
            self._native.set_isa(self.isa)
        self.isa = self._native.isa
        self._shapes = shapes(self.config, self.keys)
        self._spike_fed = {m.site for m in self.weights.matrices if m.by_input}
        if self.weights.tokens is not None:
            self._native.tokens(self.weights.tokens)
        for m in self.weights.matrices:
            self._native.matrix(m.site, m.layer, m.format, m.by_input, m.outs, m.ins, m.data, m.scale)
        for site, layer, array in self.weights.vectors:
            self._native.vector(site, layer, array)

    def __copy__(self) -> "Engine":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Engine":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is None:
            raise TypeError("an engine pickles as the folder it was loaded from, and this one was made from weights in "
                            "memory; use engine.load, or load it where it is needed")
        return load, self.source

    @property
    def precision(self) -> str:
        return self.weights.precision

    @property
    def tokens_read(self) -> int:
        """Tokens read since loading, without padding."""
        return int(self._native.tokens_read)

    @property
    def keys_read(self) -> int:
        """Keys that the queries of a head have seen since loading."""
        return int(self._native.keys_read)

    @property
    def keys(self) -> Any:
        """dtype of keys and values in a state: float32, or uint8 beside weights of 8 and 4 bits (`state.shapes`)."""
        return key_dtype(self.config, self.precision)

    def initial_state(self, batch_size: int, padding: np.ndarray | Sequence[int] | None = None) -> State:
        """The state before the first token; `padding` (B,) counts absent tokens on the left of each row."""
        rows = np.zeros(batch_size, np.int64) if padding is None else np.asarray(padding)
        return initial_state(self.config, rows, self.keys)

    def __call__(self, tokens: np.ndarray, state: State | None = None) -> tuple[np.ndarray, State]:
        """tokens (B, T) int64 -> logits (B, T, V) float32 and the state after them. Takes `state` over: see `State`."""
        tokens = self._tokens(tokens)
        B, T = tokens.shape
        logits = np.empty((B, T, self.config.vocab_size), np.float32)
        return logits, self._read(tokens, state, logits)

    def last(self, tokens: np.ndarray, state: State | None = None, top: int = 0) -> tuple[np.ndarray, State]:
        """As a call, but with the logits (B, V) after the last token only: the head reads one row a sequence.

        With `top`, logits that are certainly not among so many largest may be -inf; the others are what they are
        without it. Only the certified precisions make use of that.
        """
        tokens = self._tokens(tokens)
        logits = np.empty((len(tokens), self.config.vocab_size), np.float32)
        return logits, self._read(tokens, state, logits, top)

    def stream(self, tokens: np.ndarray, state: State | None = None) -> tuple[np.ndarray, State]:
        """The stream that the head reads, (B, T, D) float32, in place of logits. Takes `state` over."""
        tokens = self._tokens(tokens)
        new, parts = self._own(state, len(tokens)), []
        for part in np.split(tokens, range(ROWS, tokens.shape[1], ROWS), axis=1):
            parts.append(np.empty((*part.shape, self.config.d_model), np.float32))
            self._native.forward(np.ascontiguousarray(part), **new.buffers(), logits=None, all=False, stream=parts[-1])
        return np.concatenate(parts, 1), new

    def trace(self, tokens: np.ndarray, state: State | None = None,
              top: int | None = None) -> tuple[np.ndarray, dict[str, np.ndarray], State]:
        """As a call, and who spiked: site (named as in `model.sites`) -> (B, T, units) bool. Takes `state` over.

        With `top` the logits are (B, V), those of `last`.
        """
        tokens = self._tokens(tokens)
        (B, T), c = tokens.shape, self.config
        noted = {"encoder": np.zeros((B * T, c.d_model), np.uint8),
                 "mixer": np.zeros((c.n_layers, B * T, c.d_model), np.uint8),
                 "ffn": np.zeros((c.n_layers, B * T, c.d_ff), np.uint8),
                 "blocks": np.zeros((c.n_layers, B * T, c.d_model), np.uint8)}
        logits = np.empty((B, T, c.vocab_size) if top is None else (B, c.vocab_size), np.float32)
        new = self._own(state, B)
        self._native.forward(tokens, **new.buffers(), logits=logits, all=top is None, top=top or 0, **noted)
        seen = {site: array.astype(bool).reshape(*array.shape[:-2], B, T, -1) for site, array in noted.items()}
        spikes = {"encoder": seen["encoder"]} if c.spike_source != "dense" else {}
        for i in range(c.n_layers):
            spikes |= {f"mixer.{i}": seen["mixer"][i]} if c.spike_fed and c.block_spikes else {}
            spikes |= {f"ffn.{i}": seen["ffn"][i]} if c.ffn == "spike" else {}
            spikes |= {f"blocks.{i}": seen["blocks"][i]} if c.block_spikes else {}
        return logits, spikes, new

    def stats(self) -> dict[str, Any]:
        """What was read since loading, for one sequence at a time: bytes a token by site, active fraction by layer.

        bytes: site -> bytes of weights, keys and values a token; "whole": what the same matrices would cost if no
        input were silent; active: spike-fed site -> mean active fraction of its inputs, by layer; where certified
        also up (where it reads no spikes) and head -> share of outputs that had to be computed in full where the
        sketch was read.
        """
        layers, tcam, down, sketched, exact, chosen, logits, up = self._native.counts()
        tokens, c = max(self.tokens_read, 1), self.config
        share = layers / (tokens * c.n_layers)
        active = {"tcam": [n / (tokens * c.d_model) for n in tcam], "down": [n / (tokens * c.d_ff) for n in down]}
        active |= dict.fromkeys(self._spike_fed & {"q", "k", "v", "decay_gate"}, active["tcam"])
        if "up" in self._spike_fed:
            active["up"] = [n / (tokens * c.d_model) for n in up]
        seen = {"up": sketched / (tokens * c.n_layers), "head": chosen / tokens}  # share of rows that read the sketch
        if sketched:
            active["up"] = [n * c.n_layers / (sketched * c.d_ff) for n in exact]
        if chosen:
            active["head"] = [logits / (chosen * c.vocab_size)]
        seen["prior_up"], in_full = seen["head"], dict(active)
        if chosen:
            in_full["prior_up"] = active["head"]
        key = 2 * key_bytes(c, self.keys) * c.n_heads * c.n_layers
        read: dict[str, float] = {"attention": key * share * self.keys_read / tokens}
        whole = dict(read)
        for m in self.weights.matrices:
            size, fraction = m.data.nbytes + (0 if m.scale is None else m.scale.nbytes), 1.0
            site, _, part = m.site.partition(".")
            if m.by_input and site in active:
                fraction = active[site][m.layer]
            elif part == "sketch":
                fraction = seen[site]
            elif seen.get(site):
                fraction = 1 - seen[site] + seen[site] * in_full[site][m.layer]
            if site == "embedding":
                size = m.data[0].nbytes
            read[m.site] = read.get(m.site, 0) + size * fraction
            if part != "sketch":
                whole[site] = whole.get(site, 0) + size
        return {"tokens": self.tokens_read, "bytes": read, "whole": whole, "active": active}

    def _tokens(self, tokens: np.ndarray) -> np.ndarray:
        tokens = np.ascontiguousarray(tokens, np.int64)
        if tokens.ndim != 2 or not tokens.size:
            raise InputError(f"tokens must be (B, T) with at least one token, got shape {tokens.shape}")
        if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            raise InputError(f"token ids must be in 0..{self.config.vocab_size - 1}, got {tokens.min()}.."
                             f"{tokens.max()}; use the tokenizer of this model")
        return tokens

    def _read(self, tokens: np.ndarray, state: State | None, logits: np.ndarray, top: int = 0) -> State:
        """Advance through all tokens, a block of rows at a time, so that Ctrl-C is heard between blocks."""
        new = self._own(state, len(tokens))
        try:
            self._advance(tokens, new, logits, top)
        except BaseException:  # Ctrl-C: the caller may go on from what was read
            if state is not None:
                state.taken = False
            raise
        return new

    def _own(self, state: State | None, rows: int) -> State:
        """The state of `rows` sequences, checked and taken over; a new one for None."""
        if state is None:
            return self.initial_state(rows)
        check(state.arrays(), self._shapes, "the state", rows)
        return state.take()

    def _advance(self, tokens: np.ndarray, state: State, logits: np.ndarray, top: int) -> None:
        arrays, (B, T) = state.buffers(), tokens.shape
        step = T if self.config.exit_entropy is not None else max(1, ROWS // B)  # an exit looks at the whole call
        for first in range(0, T, step):
            part = np.ascontiguousarray(tokens[:, first : first + step])
            if logits.ndim == 2:
                self._native.forward(part, **arrays, logits=logits if first + step >= T else None, all=False, top=top)
                continue
            whole = logits[:, first : first + step]
            target = whole if whole.flags.c_contiguous else np.empty(whole.shape, np.float32)
            self._native.forward(part, **arrays, logits=target, all=True)
            if target is not whole:
                whole[:] = target


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _sizes(c: ModelConfig) -> dict[str, int]:
    names = ("d_model", "n_heads", "head_dim", "d_ff", "vocab_size", "window", "n_anchors", "n_layers", "conv")
    return {name: getattr(c, name) for name in names} | {"topk": min(max(round(c.topk_rate * c.d_model), 1), c.d_model)}


def _switches(c: ModelConfig, weights: Weights) -> dict[str, Any]:
    return {
        "ffn_threshold": ffn_threshold(c), "stream_threshold": stream_threshold(c), "v_clamp": c.v_clamp,
        "gate": c.gate,
        "encoder_code": CODES.index(c.encoder_code), "stream_code": CODES.index(c.stream_code),
        "ffn_code": CODES.index(c.ffn_code), "spike_levels": c.spike_levels,
        "block_spikes": c.block_spikes,
        "exit_entropy": -1.0 if c.exit_entropy is None else c.exit_entropy, "ffn_spikes": c.ffn == "spike",
        "source": SOURCES.index(c.spike_source), "prior": PRIORS.index(c.prior), "prior_weight": weights.prior_weight,
        "decay": c.paths != "attention", "attention": c.paths != "decay",
        "int8_keys": key_dtype(c, weights.precision) == np.uint8,
        "norm": c.norm == "layer", "pre": c.residual == "pre", "spike_fed": c.spike_fed,
    }
