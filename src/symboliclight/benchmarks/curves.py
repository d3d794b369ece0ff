"""Decode speed for `bench decode` against sparsity, threads, context and batch, in tokens/s."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from symboliclight.benchmarks.harness import medians, row, turns
from symboliclight.engine.model import Engine
from symboliclight.engine.weights import from_tensors

THRESHOLDS = (1e-6, 0.15, 0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of block outputs and hidden units
TOKENS = 16  # decoded in one measurement, as in `decode`
Decoder = Callable[..., Callable[[], object]]
Curve = list[dict[str, float]]


def measure(
    model: Any, engines: Mapping[str, Engine], decoder: Decoder, tokens: np.ndarray, quick: bool
) -> dict[str, Curve]:
    """All curves of one model; `decoder(engine, tokens)` gives the call that is timed."""
    return {
        "sparsity": sparsity(model, decoder, tokens, THRESHOLDS[::4] if quick else THRESHOLDS),
        "threads": threads(engines, decoder, tokens),
        "context": context(engines, decoder, tokens, (64, 256) if quick else (64, 256, 1024, 4096, 16384)),
        "batch": batch(engines, decoder, tokens, (1, 4) if quick else (1, 2, 4, 8, 16)),
    }


def sparsity(model: Any, decoder: Decoder, tokens: np.ndarray, thresholds: tuple[float, ...]) -> Curve:
    """Sparse and dense path on the same weights while the threshold, and with it the active share, moves.

    active: mean over the inputs of all spike-fed matrices, weighted by the weights each input reads.
    """
    learned = ("neuron.leak", "neuron.threshold", "threshold_log")  # as initialised here, all the same
    tensors = {name: x.detach().numpy() for name, x in model.state_dict().items() if not name.endswith(learned)}
    plain = replace(model.config, learn_neuron=False, stream_threshold=None)
    weights = {sparse: from_tensors(plain, tensors, "float32", sparse) for sparse in (True, False)}
    sizes = {m.site: m.outs * m.ins for m in weights[True].matrices if m.by_input}
    found = []
    for threshold in thresholds:
        config = replace(plain, v_threshold=threshold)
        pair = {sparse: Engine(config, weights[sparse], torch.get_num_threads()) for sparse in (True, False)}
        times = medians({str(sparse): decoder(engine, tokens) for sparse, engine in pair.items()}, rounds=5, seconds=10)
        active = {site: float(np.mean(x)) for site, x in pair[True].stats()["active"].items() if site in sizes}
        mean = sum(active[site] * sizes[site] for site in active) / sum(sizes[site] for site in active)
        drawn = {site: active[site] for site in ("tcam", "down") if site in active}
        found.append({"active": mean, **drawn, "sparse": TOKENS / times["True"], "dense": TOKENS / times["False"]})
    return sorted(found, key=lambda p: p["active"])


def break_even(curve: Curve) -> float | None:
    """Active share at which the sparse path is as fast as the dense one, interpolated; None if it always is faster."""
    for a, b in pairwise(curve):
        gain, loss = (p["sparse"] / p["dense"] - 1 for p in (a, b))
        if gain >= 0 > loss:
            return a["active"] + (b["active"] - a["active"]) * gain / (gain - loss)
    return None


def threads(engines: Mapping[str, Engine], decoder: Decoder, tokens: np.ndarray) -> Curve:
    """Each precision with one thread, two, and so on to what the benchmark may use."""
    found = []
    for count in range(1, torch.get_num_threads() + 1):
        runs = {p: decoder(Engine(e.config, e.weights, count), tokens) for p, e in engines.items()}
        times = medians(runs, rounds=5, seconds=20)
        found.append({"threads": float(count), **{p: TOKENS / t for p, t in times.items()}})
    return found


def context(engines: Mapping[str, Engine], decoder: Decoder, tokens: np.ndarray, lengths: tuple[int, ...]) -> Curve:
    """Each precision after ever longer contexts."""
    found = []
    for length in lengths:
        runs = {p: decoder(e, tokens, length) for p, e in engines.items()}
        times = medians(runs, rounds=3, seconds=10)
        found.append({"context": float(length), **{p: TOKENS / t for p, t in times.items()}})
    return found


def many(tokens: np.ndarray, size: int) -> np.ndarray:
    """`size` sequences that read different tokens, from one (1, n)."""
    return np.concatenate([np.roll(tokens, 97 * i, 1) for i in range(size)])


def batch(engines: Mapping[str, Engine], decoder: Decoder, tokens: np.ndarray, sizes: tuple[int, ...]) -> Curve:
    """Tokens/s of all sequences together."""
    found = []
    for size in sizes:
        runs = {p: decoder(e, many(tokens, size)) for p, e in engines.items()}
        times = medians(runs, rounds=3, seconds=10)
        found.append({"batch": float(size), **{p: size * TOKENS / t for p, t in times.items()}})
    return found


def batch_rows(engines: Mapping[str, Engine], decoder: Decoder, tokens: np.ndarray, name: str) -> list[dict[str, Any]]:
    """A batch of 16 beside a single sequence at each precision, in turns."""
    rows = []
    for p, engine in engines.items():
        runs = {"1": decoder(engine, tokens), "16": decoder(engine, many(tokens, 16))}
        found = turns(runs, rounds=15, seconds=15, twice=True)
        rows.append(row(f"decode {name} {p}, batch 16 against batch 1", "tokens/s", 16 * TOKENS / found.median("16"),
                        TOKENS / found.median("1"), 16 * found.faster("16", "1")))
    return rows
