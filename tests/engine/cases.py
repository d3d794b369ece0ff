"""Writes what runtime_test.cpp reads: small models as the runtime takes them, a text, and what comes out of it.

Usage: PYTHONPATH=tests python tests/engine/cases.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch
from test_exact import engine_of, random_model

from symboliclight.engine.model import Engine, _sizes, _switches
from symboliclight.engine.pack import PRECISIONS
from test_golden import CASES, golden_model

# Window and text are longer than a block of 16 short keys. Without a prior nothing asks the C library for erff, and all
# bits must agree.
V1 = {"d_model": 64, "n_heads": 2, "head_dim": 32, "window": 19}
FED = {"residual": "pre", "spike_fed": True, "stream_threshold": 1.2, "learn_neuron": "all", "conv": 3,
       "decay": "input", "tie_embeddings": True, "prior": "none"}


def records(engine: Engine, tokens: np.ndarray, padding: list[int]):
    """(name, bytes or array) of everything that is read, in that order."""
    yield "sizes", _lines(_sizes(engine.config))
    yield "switches", _lines(_switches(engine.config, engine.weights))
    if engine.weights.tokens is not None:
        yield "ids", engine.weights.tokens
    for m in engine.weights.matrices:
        yield f"matrix {m.site} {m.layer} {m.format} {int(m.by_input)} {m.outs} {m.ins}", m.data
        yield "scale", b"" if m.scale is None else m.scale
    for site, layer, array in engine.weights.vectors:
        yield f"vector {site} {layer}", array
    yield f"tokens {tokens.shape[0]} {tokens.shape[1]}", tokens
    half = tokens.shape[1] // 2
    start = engine.initial_state(len(tokens), padding)
    yield from _state("start", start)
    _, state = engine(tokens[:, :half], start.copy())
    yield from _state("half", state)
    yield from _outcome(engine, tokens, start.copy())


def _outcome(engine: Engine, tokens: np.ndarray, state):
    (B, T), c = tokens.shape, engine.config
    noted = {"encoder": np.zeros((B * T, c.d_model), np.uint8)}
    noted |= {site: np.zeros((c.n_layers, B * T, units), np.uint8)
              for site, units in (("mixer", c.d_model), ("ffn", c.d_ff), ("blocks", c.d_model))}
    logits = np.empty((B, T, c.vocab_size), np.float32)
    engine._native.forward(tokens, **state.buffers(), logits=logits, all=True, **noted)
    yield "logits", logits
    yield from noted.items()
    yield from _state("end", state)


def _state(when: str, state):
    return [(f"{when} {name}", array) for name, array in state.arrays().items()]


def _lines(values) -> bytes:
    return "".join(f"{name} {float(value) if isinstance(value, float) else int(value)!r}\n"
                   for name, value in values.items()).encode()


def golden(case):
    yield "golden encoder", np.array(case["encoder_spikes_per_token"], np.int64)
    yield "golden blocks", np.array(case["block_spikes_per_token"], np.int64)
    yield "golden logits", np.array(case["logits_first8"], np.float64)
    yield "golden logsumexp", np.array(case["logsumexp"], np.float64)
    yield "golden argmax", np.array(case["argmax"], np.int64)


def write(path: Path, found) -> None:
    with path.open("wb") as file:
        for name, value in found:
            data = value if isinstance(value, bytes) else np.ascontiguousarray(value).tobytes()
            file.write(f"{name}\n{len(data)}\n".encode() + data)


def write_all(folder: Path) -> list[Path]:
    """The golden cases at float32, and two models at every precision, two rows of which one begins with padding."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        engine = engine_of(golden_model(case, torch.float32), isa="portable")
        write(folder / f"golden-{case['head']}", [*records(engine, np.array([case["tokens"]]), [0]), *golden(case)])
    for name, switches in (("v1", V1), ("fed", FED)):
        tokens = np.random.default_rng(1).integers(0, 83, (2, 45))
        for precision in PRECISIONS:
            engine = engine_of(random_model(**switches), precision, isa="portable")
            write(folder / f"{name}-{precision}", records(engine, tokens, [0, 3]))
    return sorted(folder.iterdir())


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
