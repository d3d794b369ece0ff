"""`bench quality`: what each precision of the runtime costs a trained model on held-out text, and what an exit saves.

Everything is compared with float32 in the same runtime, and that with the torch model: its spikes on real text and a
greedy continuation.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from symboliclight.benchmarks.harness import row, write
from symboliclight.core import checkpoint
from symboliclight.core.atomic import write_atomic
from symboliclight.core.config import to_dict
from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.data.shards import Shards
from symboliclight.engine.model import Engine, export, load
from symboliclight.engine.pack import PRECISIONS
from symboliclight.measure import calibration
from symboliclight.measure.likelihood import nats
from symboliclight.measure.quality import compare, means, windows_of
from symboliclight.model import load as load_torch
from symboliclight.model.sites import spike_sites
from symboliclight.show import plots

NEAREST = "int4 --calibrate none"
ALLOWED = {"int8": 0.005, "int4": 0.02}  # relative perplexity, asked for
GREEDY = 256
EXITS = (None, 2.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0)  # nats


def run(directory: Path, quick: bool, model: str, data: str) -> Path:
    """Measure and write results/bench-quality.json and its chart; `quick` reads fewer tokens to test the benchmark."""
    shards, tokenizer = Shards.open(data), Tokenizer.load(checkpoint.locate(model))
    threads = torch.get_num_threads()
    engines: dict[str, Engine] = {NEAREST if p == "int4" else p: load(model, p, threads) for p in PRECISIONS}
    engines["int4"] = calibrated_engine(model, tokenizer, threads)
    reference = engines.pop("float32")
    windows = windows_of(shards, tokenizer, "test", min(256, reference.config.max_seq_len), 512 if quick else 32_768)
    same, greedy = against_torch(model, reference, windows)
    if not same > 0.999:
        raise InputError(f"bench quality: only {same:.4%} of the spikes are those of the torch model; nothing measured")
    found = compare(reference, engines, windows)
    rows = [
        row("spikes in float32 that are those of the torch model, real text", "share", same, 1, same, 0.9999),
        row(f"greedy continuation equal to the torch model's, of {GREEDY} tokens", "tokens", greedy, GREEDY,
            greedy / GREEDY, 1.0),
    ]
    for name in list(found)[1:]:
        rows += _rows(name, found[name], found["float32"])
    for top in (1, 50):
        rate = certified_rate(load(model, "certified", threads), windows, top)
        rows.append(row(f"certified: logits computed in full, top {top}", "share", rate["head"], 1, rate["head"]))
    if any(m.site == "up.sketch" for m in engines["certified"].weights.matrices):  # none where spikes feed it
        name = "certified: hidden units computed in full because 8 bits left them open"
        rows.append(row(name, "share", rate["up"], 1, rate["up"]))
    depth = list(depths(reference, windows, 64 if quick else 256))
    path = write("quality", rows, directory, threads=threads, quick=quick, model=to_dict(reference.config),
                 data_hash=shards.data_hash, tokenizer_hash=tokenizer.hash, domains=found, depth=depth)
    write_atomic(directory / "bench-quality.svg", plots.plot_depth(depth, reference.config.n_layers))
    return path


def _rows(name: str, domains: dict[str, dict[str, Any]], exact: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Perplexity, spikes and choices of one engine beside those of float32."""
    mean, asked = means(domains), 1 / (1 + ALLOWED[name]) if name in ALLOWED else None
    against = mean["perplexity"] / (1 + mean["perplexity_change"])
    worst = max(domains, key=lambda domain: domains[domain]["perplexity_change"])
    most, beside = (d[worst]["perplexity"] for d in (domains, exact))
    return [
        row(f"perplexity {name} against float32, mean over domains", "perplexity", mean["perplexity"], against,
            against / mean["perplexity"], asked),
        row(f"perplexity {name} against float32 where it loses most, {worst}", "perplexity", most, beside,
            beside / most, asked),
        row(f"spikes {name} equal to float32's", "share", 1 - mean["mismatch"], 1, 1 - mean["mismatch"],
            1.0 if name == "certified" else None),
        row(f"most likely next token {name} equal to float32's", "share", mean["top1"], 1, mean["top1"]),
    ]


def calibrated_engine(model: str, tokenizer: Tokenizer, threads: int) -> Engine:
    """int4 as `symboliclight export` writes it."""
    torch_model, _ = load_torch(model)
    moments = calibration.moments(torch_model.eval(), calibration.read_windows(tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder) / "int4", "int4", moments)
        return load(Path(folder) / "int4", threads=threads)


def against_torch(directory: str, engine: Engine, windows: dict[str, list]) -> tuple[float, int]:
    """Share of equal spikes over one batch of windows a domain; equal tokens of a greedy continuation."""
    model, _ = load_torch(directory)
    model.eval()
    equal = pairs = 0
    for found in windows.values():
        tokens = found[0][0]
        ours = engine.trace(tokens)[1]
        theirs: dict[str, np.ndarray] = {}
        hooks = [module.register_forward_hook(_keep(theirs, site)) for site, module in spike_sites(model).items()]
        with torch.inference_mode():
            model(torch.from_numpy(tokens))
        for hook in hooks:
            hook.remove()
        equal += sum(int((theirs[site] == ours[site]).sum()) for site in ours)
        pairs += sum(spikes.size for spikes in ours.values())
    prompt = next(iter(windows.values()))[0][0][:1, :16]
    return equal / pairs, _greedy(model, engine, prompt)


def _keep(into: dict[str, np.ndarray], site: str) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> None:
        into[site] = ((output[0] if isinstance(output, tuple) else output) != 0).numpy()

    return hook


def _greedy(model: Any, engine: Engine, prompt: np.ndarray) -> int:
    """How many of GREEDY greedily chosen tokens agree before the first that does not."""
    with torch.inference_mode():
        logits, state = model(torch.from_numpy(prompt))
        ours, past = engine.last(prompt)
        for count in range(GREEDY):
            best, token = int(logits[0, -1].argmax()), int(ours[0].argmax())
            if best != token:
                return count
            logits, state = model(torch.tensor([[best]]), state)
            ours, past = engine.last(np.array([[token]]), past)
    return GREEDY


def certified_rate(engine: Engine, windows: dict[str, list], top: int) -> dict[str, float]:
    """Mean share of hidden units and of logits that the sketches leave open, token by token, for the `top` logits."""
    for found in windows.values():
        tokens, state = found[0][0][:1], engine.initial_state(1)
        for t in range(min(128, tokens.shape[1])):
            _, state = engine.last(tokens[:, t : t + 1], state, top)
    active = engine.stats()["active"]
    return {site: float(np.mean(active.get(site, [1.0]))) for site in ("up", "head")}


def depths(engine: Engine, windows: dict[str, list], length: int) -> Iterator[dict[str, float | None]]:
    """Perplexity, mean layers and tokens/s of one sequence a domain, token by token, for each entropy limit."""
    for limit in EXITS:
        early = Engine(replace(engine.config, exit_entropy=limit), engine.weights, engine.threads)
        losses, taken = [], 0.0
        for found in windows.values():
            tokens, targets = (x[:1, :length] for x in found[0])
            state = early.initial_state(1)
            for t in range(tokens.shape[1]):
                start = time.perf_counter()
                logits, state = early.last(tokens[:, t : t + 1], state)
                taken += time.perf_counter() - start
                losses.append(float(nats(logits, targets[:, t])[0]))
        layers = early._native.counts()[0] / early.tokens_read
        yield {"entropy": limit, "perplexity": float(np.exp(np.mean(losses))), "layers": layers,
               "tokens_per_s": len(losses) / taken}
