"""`bench decode`: the torch-free runtime on v1-194m at every precision, beside its dense path, torch and GPT-2.

Fields of the model can be changed: it then also runs beside the unchanged one, in turns.
Weights are random, as initialised, so that anyone can run it; the active fractions are stored with the figures.
Everything is timed in one run, in turns.
"""

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from symboliclight.benchmarks import asked, curves, memory
from symboliclight.benchmarks.harness import Rounds, medians, row, turns, write
from symboliclight.core import checkpoint
from symboliclight.core.atomic import write_atomic
from symboliclight.core.config import ModelConfig, from_dict, preset, to_dict
from symboliclight.core.errors import InputError
from symboliclight.engine.layout import places
from symboliclight.engine.model import Engine
from symboliclight.engine.pack import CERTIFIED, PRECISIONS, Precision, format_of, pack
from symboliclight.engine.state import key_bytes
from symboliclight.engine.weights import exported_tensors, from_tensors
from symboliclight.model import build
from symboliclight.show import plots

TOKENS = 16  # decoded in one measurement
CONTEXT = 128  # tokens read before
TOP = 50  # likeliest tokens that decide the next, as in `generate`: only sketches make use of it
TIMES_GPT2 = {"float32": 2.0, "bfloat16": 3.8, "int8": 7.0, "int4": 11.0}  # asked for
DRIFT = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.05, "int4": 0.3}  # root mean square, relative
DRIFT |= {p: DRIFT[exact] for p, exact in CERTIFIED.items()}
ROOFLINE = {"float32": 0.85, "bfloat16": 0.85, "int8": 0.8, "int4": 0.7}
FOUR = "int4, dense path of 4 bits throughout"

Decode = Callable[[], object]


def engine_of(model: Any, precision: Precision, sparse: bool = True) -> Engine:
    """The runtime with the weights of a torch model."""
    tensors = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    return Engine(model.config, from_tensors(model.config, tensors, precision, sparse), torch.get_num_threads())


def _dense_paths(model: Any) -> dict[str, Engine]:
    """Name -> the runtime that reads every weight of spike-fed matrices."""
    found = {f"{p}, dense path": engine_of(model, p, sparse=False) for p in PRECISIONS[:4]}
    return found | {FOUR: _in_4_bits(model)}


def _in_4_bits(model: Any) -> Engine:
    """The dense path of "int4" with 4 bits where that format has 8, in the matrices that spikes feed: other weights."""
    tensors = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    weights = from_tensors(model.config, tensors, "int4", sparse=False)
    for i, place in enumerate(places(model.config), start=1):
        if place.spikes:
            data, scale = pack(tensors[place.source], "int4")
            weights.matrices[i] = replace(weights.matrices[i], format=format_of("int4"), data=data, scale=scale)
    return Engine(model.config, weights, torch.get_num_threads())


def check(model: Any, engines: dict[str, Engine], vocab_size: int) -> None:
    """Logits must be those of the torch model in float64 (in float32 it may flip spikes), up to the precision."""
    tokens = np.random.default_rng(1).integers(0, vocab_size, (1, 32))
    expected = copy.deepcopy(model).double()(torch.from_numpy(tokens))[0].numpy()
    for name, engine in engines.items():
        error = float(np.sqrt(np.square(engine(tokens)[0] - expected).mean() / np.square(expected).mean()))
        if not error <= DRIFT[name.split(",")[0]]:
            raise InputError(f"bench decode: logits of {name} are off by {error:.2g} of their size; nothing measured")


def decoder(engine: Engine, tokens: np.ndarray, context: int = CONTEXT) -> Decode:
    """Decodes TOKENS tokens a call for the rows of `tokens`, each call at the same context."""
    _, state = engine.last(np.concatenate([np.resize(row, (1, context)) for row in tokens]))

    def run() -> None:
        nonlocal state
        for i in range(TOKENS):
            _, state = engine.last(tokens[:, i : i + 1], state, TOP)
        state.position[:] = context  # as long as before, whatever was read

    return run


def torch_decoder(model: Any, tokens: np.ndarray) -> Decode:
    """The same on a torch model."""
    ids = torch.from_numpy(tokens)
    begin = model.features(ids[:, :CONTEXT])[2]

    def run() -> None:
        state = begin
        for i in range(TOKENS):
            c, _, state = model.features(ids[:, i : i + 1], state)
            model.head(c[:, -1])

    return run


def bytes_per_token(engine: Engine, tokens: np.ndarray) -> dict[str, float]:
    """Site -> bytes that a decoded token reads after CONTEXT others: weights as counted, all keys of the window."""
    c, fresh = engine.config, Engine(engine.config, engine.weights, engine.threads)
    state = fresh.initial_state(1)
    for t in range(2 * TOKENS):  # token by token: reading a context takes other paths
        _, state = fresh.last(tokens[:1, t : t + 1], state, TOP)
    seen = min(CONTEXT, c.window) + 1 + min(c.n_anchors, max(CONTEXT - c.window, 0))
    keys = 2 * key_bytes(c, engine.keys) * c.n_heads * c.n_layers * seen
    return fresh.stats()["bytes"] | {"attention": float(keys)}


def changed(name: str, changes: Mapping[str, Any]) -> ModelConfig:
    """The preset with fields changed to plain values. Raises `InputError` for an unknown field or a wrong value."""
    return from_dict(ModelConfig, {**to_dict(preset(name)), **changes}, "--set model")


def run(directory: Path, quick: bool = False, changes: Mapping[str, Any] = MappingProxyType({})) -> Path:
    """Measure and write results/bench-decode.json and its chart; `quick` shrinks the models to test the benchmark."""
    original, rivals = ("mini", ["gpt2-mini"]) if quick else ("v1-194m", ["gpt2-201m", "gpt2-124m"])
    config, rounds = changed(original, changes), 5 if quick else 61
    name = f"changed {original}" if changes else original
    torch.manual_seed(0)
    with torch.inference_mode():
        model = build(config).eval()
        others = {rival: build(preset(rival)).eval() for rival in rivals}
        tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 8192))
        engines: dict[str, Engine] = {p: engine_of(model, p) for p in PRECISIONS}
        dense = _dense_paths(model)
        few = replace(changed("mini", changes), init_std=0.02)  # few of its spikes hang on how weights round
        small = build(few).eval()
        check(small, {p: engine_of(small, p) for p in PRECISIONS} | _dense_paths(small), few.vocab_size)
        check(model, {n: e for n, e in (engines | dense).items() if n.startswith("float32")}, config.vocab_size)
        rows = _decode_rows(model, others, engines, dense, tokens, name, rounds)
        rows += _prefill_rows(others[rivals[0]], engines, tokens, name, rivals[0], 256 if quick else 512)
        rows += _shape_rows(engines["int8"], tokens, name)
        rows += curves.batch_rows({p: engines[p] for p in PRECISIONS if p != "int8"}, decoder, tokens, name)
        rows += _start_rows(model, name)
        lines = curves.measure(model, engines, decoder, tokens, quick)
        sites = {p: bytes_per_token(e, tokens) for p, e in engines.items()}
        active = engines["float32"].stats()["active"]
        certified = engines["certified"].stats()["active"]
        active |= {f"{n}, certified": certified[n] for n in ("up", "head") if n in certified and n not in active}
        isa = engines["int8"].isa
        del others, engines, dense
        rows += _beside_rows(model, name, original, tokens) if changes else []
        del model
        rows += [] if changes else _large_rows("mini" if quick else "v1-0.8b", tokens, rounds)
    path = write("decode", rows, directory, threads=torch.get_num_threads(), quick=quick, isa=isa, context=CONTEXT,
                 sites=sites, active_fraction={site: float(np.mean(x)) for site, x in active.items()}, curves=lines,
                 break_even_active=curves.break_even(lines["sparsity"]), changes=dict(changes))
    stored = json.loads(path.read_text(encoding="utf-8"))
    write_atomic(directory / "bench-decode.svg", plots.plot_decode(stored["curves"]))
    return path


def _decode_rows(model: Any, others: Mapping[str, Any], engines: dict[str, Engine], dense: dict[str, Engine],
                 tokens: np.ndarray, name: str, rounds: int) -> list[dict[str, Any]]:
    """All precisions beside the models of others, then each beside its dense path and the bandwidth of the memory."""
    reads = {n: decoder(e, tokens) for n, e in (engines | dense).items()}
    rivals = {n: torch_decoder(m, tokens) for n, m in {"torch": model, **others}.items()}
    beside, rows = turns({p: reads[p] for p in engines} | rivals, rounds=15, seconds=120, twice=True), []

    def ratio(what: str, p: str, other: str, target: float | None = None) -> dict[str, Any]:
        return row(f"decode {name}{what}", "tokens/s", TOKENS / beside.median(p), TOKENS / beside.median(other),
                   beside.faster(p, other), target)

    targets: dict[str, Mapping[str, float]] = {n: {} if i else TIMES_GPT2 for i, n in enumerate(others)}
    stream, large = memory.reading()
    for p, engine in engines.items():
        rows += [ratio(f" {p} against {n} float32 in transformers", p, n, times.get(p)) for n, times in targets.items()]
        slow, size = f"{p}, dense path", sum(bytes_per_token(engine, tokens).values())
        names = [n for n in reads if n.split(",")[0] == p]
        near = turns({n: reads[n] for n in names} | {"memory": stream, "meeting": memory.meeting(engine)}, rounds,
                     seconds=20, twice=True)
        rate = TOKENS / near.median(p)
        rows += memory.everywhere(near, partial(_roofline, f"decode {name} {p}: bytes read a token", p, size, large))
        if slow in reads:
            rows.append(row(f"decode {name} {p}: sparse path against dense path, same weights", "tokens/s", rate,
                            TOKENS / near.median(slow), near.faster(p, slow), 1.25))
            whole = sum(bytes_per_token(dense[slow], tokens).values())
            rows.append(row(f"decode {name} {p}: bytes read a token, sparse path against dense path", "MB", size / 1e6,
                            whole / 1e6, whole / size))
        if FOUR in names:
            rows.append(row(f"decode {name} {p}: sparse path against a {FOUR[6:]}, other weights", "tokens/s", rate,
                            TOKENS / near.median(FOUR), near.faster(p, FOUR)))
    same = f"same spikes and same {TOP} largest logits"
    rows += [ratio(f": {p} against {exact}, {same}", p, exact) for p, exact in CERTIFIED.items()]
    rows.append(ratio(" float32 against its torch model", "float32", "torch"))
    return memory.rows(engines["int8"]) + rows


def _roofline(name: str, p: str, size: float, large: float, found: Rounds) -> dict[str, Any]:
    """`size` bytes a step, of contender p, against `large` bytes of the memory alone."""
    return row(f"{name}, against the bandwidth", "GB/s", size * TOKENS / found.median(p) / 1e9,
               large / found.median("memory") / 1e9, size * TOKENS / large * found.faster(p, "memory"), ROOFLINE.get(p))


def _prefill_rows(rival: Any, engines: Mapping[str, Engine], tokens: np.ndarray, name: str, rival_name: str,
                  short: int) -> list[dict[str, Any]]:
    ids = torch.from_numpy(tokens[:, :short])
    times: Mapping[str, float] = {"int8": 2.5}
    contenders: dict[str, Decode] = {p: _prefill(engines[p], tokens[:, :short]) for p in PRECISIONS[:4]}
    found = turns(contenders | {"rival": lambda: rival.head(rival.features(ids)[0][:, -1])}, rounds=9, twice=True)
    rows = [row(f"prefill of {short} tokens, {name} {p} against {rival_name} float32 in transformers", "tokens/s",
                short / found.median(p), short / found.median("rival"), found.faster(p, "rival"), times.get(p))
            for p in contenders]
    for p in ("float32", "int8"):
        found = turns({"2048": _prefill(engines[p], tokens[:, :2048]), "8192": _prefill(engines[p], tokens)}, 3, 1)
        growth = found.faster("2048", "8192")
        rows.append(row(f"prefill of 8192 tokens against 2048, {name} {p}: growth allowed 4.4", "x", growth, 4.4,
                        4.4 / growth, 1.0))
    return rows


def _prefill(engine: Engine, tokens: np.ndarray) -> Decode:
    return lambda: engine.last(tokens)


def _shape_rows(engine: Engine, tokens: np.ndarray, name: str) -> list[dict[str, Any]]:
    """Batches, long contexts and the size of the state."""
    contenders = {"1": decoder(engine, tokens), "16": decoder(engine, curves.many(tokens, 16)),
                  "near": decoder(engine, tokens, 512), "far": decoder(engine, tokens, 16384)}
    stream, large = memory.reading()
    found = turns(contenders | {"memory": stream, "meeting": memory.meeting(engine)}, rounds=31, seconds=60, twice=True)
    read, fed = bytes_per_token(engine, tokens), {"attention", *engine.stats()["active"]}
    step = sum(b for site, b in read.items() if site not in fed) + 16 * read["attention"]
    what = f"decode {name} int8, batch 16"
    rate, size = {n: TOKENS / found.median(n) for n in contenders}, engine.initial_state(1).nbytes / 1e6
    return [
        *memory.everywhere(found, lambda r: row(
            f"{what} against batch 1", "tokens/s", 16 * TOKENS / r.median("16"),
            TOKENS / r.median("1"), 16 * r.faster("16", "1"), asked.batch(engine))),
        *memory.everywhere(found, partial(_roofline, f"{what}: keys and dense-fed weights", "16", step, large)),
        row(f"decode {name} int8 at context 16384 against 512", "tokens/s", rate["far"], rate["near"],
            found.faster("far", "near"), 0.95),
        row(f"state of one sequence, {name} int8", "MB", size, 20.0, 20.0 / size, 1.0),
    ]


FIRST_TOKEN = """
import sys, numpy
from symboliclight import engine
engine.load(sys.argv[1], threads=int(sys.argv[2])).last(numpy.arange(8)[None])
"""


def _start_rows(model: Any, name: str) -> list[dict[str, Any]]:
    """Seconds from process start to the first token, the weights in the file cache."""
    rows = []
    tensors = {n: x.detach().numpy() for n, x in model.state_dict().items()}
    for precision in ("float32", "int8"):
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            checkpoint.save(folder, model.config, exported_tensors(model.config, tensors, precision), None)
            command = [sys.executable, "-c", FIRST_TOKEN, str(folder), str(torch.get_num_threads())]
            times = medians({"start": partial(subprocess.run, command, check=True)}, rounds=5)
        rows.append(row(f"process start to first token, {name} {precision}, exported", "s", times["start"], 1.0,
                        1.0 / times["start"], 1.0))
    return rows


def _beside_rows(model: Any, name: str, original: str, tokens: np.ndarray) -> list[dict[str, Any]]:
    """A changed model beside the preset that it was made from, at each precision."""
    torch.manual_seed(0)
    models, rows = {name: model, original: build(preset(original)).eval()}, []
    tokens = tokens % min(m.config.vocab_size for m in models.values())
    for p in PRECISIONS:
        engines = {n: engine_of(m, p) for n, m in models.items()}
        found = turns({n: decoder(e, tokens) for n, e in engines.items()}, rounds=31, seconds=20, twice=True)
        read = {n: sum(bytes_per_token(e, tokens).values()) / 1e6 for n, e in engines.items()}
        rows += [row(f"decode {name} {p} against {original} {p}", "tokens/s", TOKENS / found.median(name),
                     TOKENS / found.median(original), found.faster(name, original)),
                 row(f"bytes read a token, {name} {p} against {original} {p}", "MB", read[name], read[original],
                     read[original] / read[name])]
    return rows


def _large_rows(name: str, tokens: np.ndarray, rounds: int) -> list[dict[str, Any]]:
    """A larger model at int8 against the speed at which memory could deliver its dense int8 weights."""
    torch.manual_seed(0)
    model = build(preset(name)).eval()
    engine = engine_of(model, "int8")
    del model
    tokens = tokens % engine.config.vocab_size
    stream, read = memory.reading()
    found = turns({"engine": decoder(engine, tokens), "memory": stream, "meeting": memory.meeting(engine)}, rounds,
                  seconds=30, twice=True)
    sizes = engine.stats()["whole"]
    whole = sum(sizes.values()) - sizes["attention"]
    return memory.everywhere(found, lambda r: row(
        f"decode {name} int8 against the memory limit of its dense int8 weights", "tokens/s",
        TOKENS / r.median("engine"), read / r.median("memory") / whole,
        whole * TOKENS / read * r.faster("engine", "memory"), 1.3))
