"""`bench decode`: the torch-free runtime on v1-194m at every precision, beside its dense path, torch and GPT-2 201M.

Weights are random, as initialised: sparsity is that of an untrained model and is printed with the figures. Everything
is timed in one run, in turns.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from symboliclight.benchmarks.harness import medians, row, write
from symboliclight.config import preset
from symboliclight.engine.model import Engine
from symboliclight.engine.pack import PRECISIONS, Precision
from symboliclight.engine.weights import from_tensors
from symboliclight.errors import InputError
from symboliclight.model import build

TOKENS = 16  # decoded in one measurement
CONTEXT = 128  # tokens read before
TIMES_GPT2 = {"float32": 2.0, "bfloat16": 3.8, "int8": 7.0, "int4": 11.0}  # asked for, issue 4
DRIFT = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.05, "int4": 0.3}  # root mean square, relative
ROOFLINE = {"float32": 0.85, "bfloat16": 0.85, "int8": 0.8, "int4": 0.7}

Decode = Callable[[], object]


def engine_of(model: Any, precision: Precision, sparse: bool = True) -> Engine:
    """The runtime with the weights of a torch model."""
    tensors = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    return Engine(model.config, from_tensors(model.config, tensors, precision, sparse), torch.get_num_threads())


def check(model: Any, engines: dict[str, Engine], vocab_size: int) -> None:
    """Logits must be those of the torch model in float64 (in float32 it may flip spikes), up to the precision."""
    tokens = np.random.default_rng(1).integers(0, vocab_size, (1, 32))
    expected = copy.deepcopy(model).double()(torch.from_numpy(tokens))[0].numpy()
    for name, engine in engines.items():
        error = float(np.sqrt(np.square(engine(tokens)[0] - expected).mean() / np.square(expected).mean()))
        if not error <= DRIFT[name.split(",")[0]]:
            raise InputError(f"bench decode: logits of {name} are off by {error:.2g} of their size; nothing measured")


def decoder(engine: Engine, tokens: np.ndarray, rows: int = 1) -> Decode:
    """Decodes TOKENS tokens a call for `rows` sequences, going on from where it was."""
    _, state = engine.last(np.repeat(tokens[:, :CONTEXT], rows, 0))

    def run() -> None:
        nonlocal state
        for i in range(TOKENS):
            _, state = engine.last(np.repeat(tokens[:, i : i + 1], rows, 0), state)

    return run


def torch_decoder(model: Any, tokens: np.ndarray) -> Decode:
    """The same on a torch model, always from the same context."""
    ids = torch.from_numpy(tokens)
    begin = model.features(ids[:, :CONTEXT])[2]

    def run() -> None:
        state = begin
        for i in range(TOKENS):
            c, _, state = model.features(ids[:, i : i + 1], state)
            model.head(c[:, -1])

    return run


def bytes_per_token(engine: Engine, tokens: np.ndarray) -> float:
    """Bytes that a decoded token reads after CONTEXT others."""
    c, stats = engine.config, engine.stats()
    seen = min(CONTEXT, c.window) + 1 + min(c.n_anchors, max(CONTEXT - c.window, 0))
    return sum(stats["bytes"].values()) - stats["bytes"]["attention"] + 8 * c.d_model * c.n_layers * seen


def run(directory: Path, quick: bool = False) -> Path:
    """Measure and write results/bench-decode.json; `quick` shrinks the models to test the benchmark itself."""
    name, rival_name = ("mini", "gpt2-mini") if quick else ("v1-194m", "gpt2-201m")
    torch.manual_seed(0)
    with torch.inference_mode():
        model, rival = build(preset(name)).eval(), build(preset(rival_name)).eval()
        tokens = np.random.default_rng(0).integers(0, preset(name).vocab_size, (1, 8192))
        engines: dict[str, Engine] = {p: engine_of(model, p) for p in PRECISIONS}
        dense = {f"{p}, dense path": engine_of(model, p, sparse=False) for p in PRECISIONS}
        small = build(preset("mini")).eval()
        check(small, {p: engine_of(small, p) for p in PRECISIONS}, preset("mini").vocab_size)
        check(model, {n: e for n, e in (engines | dense).items() if n.startswith("float32")}, preset(name).vocab_size)
        rows = _decode_rows(model, rival, engines, dense, tokens, name, rival_name)
        rows += _prefill_rows(rival, engines["float32"], tokens, name, rival_name, 512 if not quick else 256)
        rows += _shape_rows(engines["int8"], tokens, name)
    active = engines["float32"].stats()["active"]
    return write("decode", rows, directory, threads=torch.get_num_threads(), quick=quick, isa=engines["int8"].isa,
                 context=CONTEXT, sites={p: e.stats()["bytes"] for p, e in engines.items()},
                 active_fraction={site: float(np.mean(x)) for site, x in active.items()})


def _decode_rows(model: Any, rival: Any, engines: dict[str, Engine], dense: dict[str, Engine], tokens: np.ndarray,
                 name: str, rival_name: str) -> list[dict[str, Any]]:
    stream = torch.ones(100_000_000)
    contenders: dict[str, Decode] = {n: decoder(e, tokens) for n, e in (engines | dense).items()}
    contenders |= {"torch": torch_decoder(model, tokens), "rival": torch_decoder(rival, tokens), "stream": stream.sum}
    times = medians(contenders, rounds=7, seconds=90)
    rate = {n: TOKENS / t for n, t in times.items()}
    bandwidth = stream.nbytes / times["stream"]
    rows = [row("memory read by torch.sum", "GB/s", bandwidth / 1e9, bandwidth / 1e9, 1.0)]
    for p, engine in engines.items():
        size = bytes_per_token(engine, tokens)
        rows.append(row(f"decode {name} {p} against {rival_name} float32 in transformers", "tokens/s", rate[p],
                        rate["rival"], rate[p] / rate["rival"], TIMES_GPT2[p]))
        rows.append(row(f"decode {name} {p}: bytes read a token, against the bandwidth", "GB/s", size * rate[p] / 1e9,
                        bandwidth / 1e9, size * rate[p] / bandwidth, ROOFLINE[p]))
        slow = rate[f"{p}, dense path"]
        rows.append(row(f"decode {name} {p}: sparse path against dense path, same weights", "tokens/s", rate[p], slow,
                        rate[p] / slow, 1.25))
    rows.append(row(f"decode {name} float32 against its torch model", "tokens/s", rate["float32"], rate["torch"],
                    rate["float32"] / rate["torch"]))
    return rows


def _prefill_rows(rival: Any, engine: Engine, tokens: np.ndarray, name: str, rival_name: str,
                  short: int) -> list[dict[str, Any]]:
    ids = torch.from_numpy(tokens[:, :short])
    times = medians({"engine": lambda: engine.last(tokens[:, :short]),
                     "rival": lambda: rival.head(rival.features(ids)[0][:, -1])}, rounds=5)
    rows = [row(f"prefill of {short} tokens, {name} float32 against {rival_name} in transformers", "tokens/s",
                short / times["engine"], short / times["rival"], times["rival"] / times["engine"], 2.5)]
    times = medians({"2048": lambda: engine.last(tokens[:, :2048]), "8192": lambda: engine.last(tokens)}, 3, 1)
    growth = times["8192"] / times["2048"]
    return [*rows, row(f"prefill of 8192 tokens against 2048, {name} float32: growth allowed 4.4", "x", growth, 4.4,
                       4.4 / growth, 1.0)]


def _shape_rows(engine: Engine, tokens: np.ndarray, name: str) -> list[dict[str, Any]]:
    """Batches, long contexts and the size of the state."""
    _, near = engine.last(tokens[:, :512])
    _, far = engine.last(tokens)
    _, far = engine.last(tokens, far)
    states = {"near": near, "far": far}

    def at(where: str) -> Decode:
        def run() -> None:
            for i in range(TOKENS):
                states[where] = engine.last(tokens[:, i : i + 1], states[where])[1]
        return run

    contenders = {"1": decoder(engine, tokens), "16": decoder(engine, tokens, 16), "near": at("near"), "far": at("far")}
    times = medians(contenders, rounds=7, seconds=30)
    size = states["near"].nbytes / 1e6
    return [
        row(f"decode {name} int8, batch 16 against batch 1", "tokens/s", 16 * TOKENS / times["16"], TOKENS / times["1"],
            16 * times["1"] / times["16"], 5.0),
        row(f"decode {name} int8 at context 16384 against 512", "tokens/s", TOKENS / times["far"],
            TOKENS / times["near"], times["near"] / times["far"], 0.95),
        row(f"state of one sequence, {name}", "MB", size, 20.0, 20.0 / size, 1.0),
    ]
