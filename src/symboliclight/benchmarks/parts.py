"""Where the time of a training step goes, and what bounds each part.

Each part runs alone, forward and backward in one precision, on inputs shaped like those of a real step. Beside its
seconds stands the floor under them: its multiply-accumulates at the machine's measured matrix rate or, where it has
none, the bytes it must touch at the measured copy rate. `overhead` is seconds over that floor.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from symboliclight.benchmarks.harness import LABELS, medians
from symboliclight.core.config import ModelConfig, TrainConfig
from symboliclight.core.processor import Precision
from symboliclight.model import build
from symboliclight.model.state import LayerState
from symboliclight.ops import linear_cross_entropy
from symboliclight.ops.rope import rope_tables
from symboliclight.train.optim import adamw
from symboliclight.train.step import autocast


def in_precision(precision: Precision) -> AbstractContextManager[None]:
    """That of a training step on the CPU."""
    return autocast(torch.device("cpu"), precision)


@cache
def limits(precision: Precision) -> dict[str, float]:
    """Measured on this machine: matrix rate (multiply-accumulates/s) and copy rate (bytes/s read and written)."""
    dtype = getattr(torch, precision)
    a, b = torch.randn(2048, 1024).to(dtype), torch.randn(1024, 4096).to(dtype)
    source, target = torch.randn(64 << 20), torch.empty(64 << 20)
    times = medians({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, rounds=9)
    return {f"{LABELS[precision]}_macs_per_s": 2048 * 1024 * 4096 / times["product"],
            "copy_bytes_per_s": 2 * source.nbytes / times["copy"]}


def both_ways(precision: Precision, function: Callable[..., Any], *inputs: Tensor) -> Callable[[], None]:
    """Forward and backward of `function`, with gradients for its floating inputs and its parameters."""
    leaves = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
    grads: list[Tensor] = []

    def run() -> None:
        with in_precision(precision):
            out = function(*leaves)
        if not grads:
            grads.append(torch.randn_like(out) if out.dim() else torch.ones_like(out))
        out.backward(grads[0])
        for x in leaves:
            x.grad = None

    return run


def profile(config: ModelConfig, batch: int, seq_len: int, precision: Precision) -> list[dict[str, Any]]:
    """Parts of one step of a model: name, seconds, how often, macs, bytes, floor in seconds and overhead."""
    torch.manual_seed(0)
    model = build(config).train()
    tokens = torch.randint(0, config.vocab_size, (batch, seq_len))
    timed = partial(both_ways, precision)
    parts = _gpt2_parts if config.family == "gpt2" else _our_parts
    found = parts(model, config, tokens, timed)
    found["head and loss"] = (_head(model, config, tokens, timed), 1, _macs(model.head, model, config) * tokens.numel())
    optimizer = adamw(model, TrainConfig())
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    found["clip and AdamW"] = (lambda: (nn.utils.clip_grad_norm_(model.parameters(), 1.0), optimizer.step()), 1, 0)
    times = medians({name: run for name, (run, _, _) in found.items()}, rounds=5)
    size = _bytes(model, config, tokens.numel())
    return [_part(name, times[name] * count, count, macs, size.get(name, 0), precision)
            for name, (_, count, macs) in found.items()]


def _bytes(model: Any, config: ModelConfig, n: int) -> dict[str, int]:
    """Bytes that parts without products must touch for n tokens, in float32 arrays read or written once."""
    stream, table = n * config.d_model, config.vocab_size * config.d_model
    return {
        "encoder": 4 * (10 * stream + table),  # lookup 2, norm 2 and 3 back, scan 2 and 1 back; the table's gradient
        "embedding": 4 * (5 * stream + table),
        "block spikes": 4 * 5 * stream * config.n_layers,  # read and written; gradient and input read, gradient written
        "clip and AdamW": 4 * 8 * sum(p.numel() for p in model.parameters()),  # norm 1, update 7
    }


def _part(name: str, seconds: float, count: int, macs: int, size: int, precision: Precision) -> dict[str, Any]:
    rates = limits(precision)
    floors = {"arithmetic": 3 * macs / rates[f"{LABELS[precision]}_macs_per_s"],
              "bytes": size / rates["copy_bytes_per_s"]}
    bound = max(floors, key=lambda k: floors[k])
    return {"part": name, "seconds": round(seconds, 5), "times": count, "macs_forward": macs, "bytes": size,
            "bound": bound, "floor_s": round(floors[bound], 5),
            "overhead": round(seconds / floors[bound], 2) if floors[bound] else None}


Timed = Callable[..., Callable[[], None]]  # `both_ways` in one precision
Parts = dict[str, tuple[Callable[[], Any], int, int]]  # name -> (run, how often a step, forward macs of all of them)


def _our_parts(model: Any, config: ModelConfig, tokens: Tensor, timed: Timed) -> Parts:
    B, T = tokens.shape
    D, n, K = config.d_model, tokens.numel(), config.head_dim
    state, block = model.initial_state(B), model.blocks[0]
    past = state.layers[0]
    if past.k is not None:
        past.k, past.v, past.gate = past.k[:, :0], past.v[:, :0], past.gate[:, :0]
    c = torch.nn.functional.layer_norm(torch.randn(B, T, D), (D,))
    s, gate = (c >= 1).float(), torch.ones(B, T, dtype=torch.bool)
    tables = rope_tables(torch.arange(T).expand(B, T), K, config.rope_base, torch.float32)
    mixer, L = block.mixer, config.n_layers
    heads = torch.randn(B, T, config.n_heads, K)
    seen = min(config.window + config.n_anchors, T / 2) * D  # keys a query sees on average, times width
    decay, attention = config.paths != "attention", config.paths != "decay"
    mixing: Parts = {}
    if decay:
        mixing["decay"] = (timed(lambda s: mixer.remember(s, past, LayerState()), s), L, L * D * D * n)
    if attention:
        attend = timed(lambda c: mixer.attend(c, gate, tables, state.position, past, LayerState()), c)
        mixing["attention"] = (attend, L, int(L * (3 * D * D + 2 * seen) * n))
    paths = [heads] * (decay + attention)
    join = timed(lambda c, *o: mixer.join(c, o[0] if decay else None, o[-1] if attention else None), c, *paths)
    return {
        "encoder": (timed(lambda: model.encoder(tokens, state.v, None)[0]), 1, 0),
        **mixing,
        "mix and project": (join, L, L * D * D * n),
        "ffn": (timed(block.ffn, c), L, L * 2 * D * config.d_ff * n),
        "block spikes": (timed(block.spike, c), L, 0),
    }


def _gpt2_parts(model: Any, config: ModelConfig, tokens: Tensor, timed: Timed) -> Parts:
    D, n, T, L = config.d_model, tokens.numel(), tokens.shape[1], config.n_layers
    block, x = model.transformer.h[0], torch.randn(*tokens.shape, D)
    attention = lambda x: block.attn(block.ln_1(x))[0]  # noqa: E731
    return {
        "embedding": (timed(lambda: model.transformer.wte(tokens) + model.transformer.wpe(torch.arange(T))), 1, 0),
        "attention": (timed(attention, x), L, int(L * n * (4 * D * D + T * D))),
        "ffn": (timed(lambda x: block.mlp(block.ln_2(x)), x), L, L * 2 * D * config.d_ff * n),
    }


def _head(model: Any, config: ModelConfig, tokens: Tensor, timed: Timed) -> Callable[[], None]:
    def loss(c: Tensor) -> Tensor:
        features, weights, bias = model.head.terms(c)
        return linear_cross_entropy(features, weights, tokens, bias, 1e-4)[0]

    return timed(loss, torch.randn(*tokens.shape, config.d_model))


def _macs(head: Any, model: Any, config: ModelConfig) -> int:
    """Forward multiply-accumulates a token of the head."""
    with torch.no_grad():
        features, weights, _ = head.terms(torch.zeros(1, config.d_model))
    inner = config.d_model * (config.d_model // 4) if len(features) > 1 else 0
    return sum(w.numel() for w in weights) + inner
