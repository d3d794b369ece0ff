"""`bench gpu`: writing, reading and training on a CUDA device beside GPT-2 of the same size in `transformers`.

GPT-2 writes as its users have it write, with `generate`, greedily; a stricter rival decodes through a graph over a
static cache, recorded as ours is. Both sides have the same tokens, batch, precision and length, and nothing is timed
before its result has been compared. Weights are random, as initialised.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from symboliclight.benchmarks.harness import medians, row, write
from symboliclight.benchmarks.train import RECIPE, at_length, tokens_of
from symboliclight.core.errors import InputError
from symboliclight.measure.energy import counters
from symboliclight.model import build
from symboliclight.model.graph import Recorded
from symboliclight.train.graph import GraphedStep
from symboliclight.train.optim import adamw

CONTEXT, WRITTEN = 128, 128  # tokens read before, and written in one measurement
Run = Callable[[], object]


def check(name: str, device: torch.device) -> None:
    """Recorded steps must give the logits of the plain model, and that those of the CPU in float64."""
    torch.manual_seed(0)
    model: Any = build(at_length(name, 64)).eval()
    exact, tokens = copy.deepcopy(model).double(), tokens_of(model.config, 2, 47)
    with torch.inference_mode():
        expected = exact(tokens)[0][:, 40:]
        model.to(device)
        plain = model(tokens.to(device))[0][:, 40:].cpu()
        run = Recorded(model)
        _, _, state = model.features(tokens[:, :40].to(device))
        steps = []
        for t in range(40, 48):
            logits, state = run.step(tokens[:, t : t + 1].to(device), state)
            steps.append(logits.clone().cpu())
    for what, found in (("the model", plain), ("its recorded steps", torch.stack(steps, 1))):
        error = float((found - expected).norm() / expected.norm())
        if not error <= 1e-4:
            raise InputError(f"bench gpu: logits of {what} on {device} are off by {error:.2g}; nothing was measured")


def ours(model: Any, tokens: Tensor) -> Run:
    """Greedy text of `WRITTEN` tokens after `tokens`, recorded."""
    run = Recorded(model)

    def write_on() -> Tensor:
        with torch.inference_mode():
            c, _, state = model.features(tokens)
            logits = model.head(c[:, -1])
            for _ in range(WRITTEN):
                logits, state = run.step(logits.argmax(-1, keepdim=True), state)
        return logits

    return write_on


def plain(model: Any, tokens: Tensor) -> Run:
    """The same, kernel by kernel."""

    def write_on() -> Tensor:
        with torch.inference_mode():
            c, _, state = model.features(tokens)
            for _ in range(WRITTEN):
                c, _, state = model.features(model.head(c[:, -1]).argmax(-1, keepdim=True), state)
        return c

    return write_on


def transformers_model(name: str, seq_len: int, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    wrapped: Any = build(at_length(name, seq_len))
    model: Any = GPT2LMHeadModel(wrapped.transformer.config)
    return model.to(device, dtype)


def generate(model: Any, tokens: Tensor) -> Callable[[], Tensor]:
    """GPT-2 as its users have it write."""
    mask = torch.ones_like(tokens)

    def write_on() -> Tensor:
        return model.generate(tokens, attention_mask=mask, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN,
                              do_sample=False, pad_token_id=0)

    return write_on


class StaticGPT2:
    """GPT-2 over keys and values of fixed size, one token a replay: what `transformers` does not offer, as a rival."""

    def __init__(self, model: Any, tokens: Tensor) -> None:
        self.model, self.prompt, c = model, tokens, model.config
        B, self.room = len(tokens), tokens.shape[1] + WRITTEN + 1
        shape = (B, c.n_head, self.room, c.n_embd // c.n_head)
        weight = model.transformer.wte.weight
        self.keys = [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(c.n_layer)]
        self.token = torch.zeros(B, 1, dtype=torch.long, device=tokens.device)
        self.at = torch.zeros(1, dtype=torch.long, device=tokens.device)
        self.seen = torch.arange(self.room, device=tokens.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self.step()

    def step(self) -> Tensor:
        """Logits (B, V) after `token` at position `at`; both move on."""
        body, c = self.model.transformer, self.model.config
        x, mask = body.wte(self.token) + body.wpe(self.at), (self.seen <= self.at)[None, None, None]
        for block, (keys, values) in zip(body.h, self.keys, strict=True):
            q, k, v = (part.view(len(x), 1, c.n_head, -1).transpose(1, 2)
                       for part in block.attn.c_attn(block.ln_1(x)).split(c.n_embd, 2))
            keys.index_copy_(2, self.at, k)
            values.index_copy_(2, self.at, v)
            out = nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            x = x + block.attn.c_proj(out.transpose(1, 2).reshape(x.shape))
            x = x + block.mlp(block.ln_2(x))
        logits = self.model.lm_head(body.ln_f(x))[:, -1]
        self.token.copy_(logits.argmax(-1, keepdim=True))
        self.at.add_(1)
        return logits

    def write_on(self) -> Tensor:
        """As `generate`."""
        done = self.model(self.prompt, use_cache=True)
        T = self.prompt.shape[1]
        for layer, (keys, values) in zip(done.past_key_values.layers, self.keys, strict=True):
            keys[:, :, :T], values[:, :, :T] = layer.keys, layer.values
        self.token.copy_(done.logits[:, -1:].argmax(-1))
        self.at.fill_(T)
        ids = [self.token.clone()]
        for _ in range(WRITTEN - 1):
            self.graph.replay()
            ids.append(self.token.clone())
        return torch.cat([self.prompt, *ids], 1)


def timed(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each, the device idle before and after."""

    def whole(run: Run) -> Run:
        def call() -> None:
            run()
            torch.cuda.synchronize()

        return call

    return medians({name: whole(run) for name, run in runs.items()}, rounds)


def decode_rows(name: str, rival: str, batch: int, dtype: torch.dtype, device: torch.device, joules: bool,
                rounds: int, energy: dict[str, Any]) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    config = at_length(name, CONTEXT + WRITTEN + 1)
    model: Any = build(config).to(device, dtype).eval()
    other = transformers_model(rival, CONTEXT + WRITTEN + 1, dtype, device).eval()
    tokens = tokens_of(config, batch, CONTEXT - 1).to(device)
    with torch.inference_mode():
        static = StaticGPT2(other, tokens)
        found, wanted = static.write_on(), generate(other, tokens)()
        if dtype == torch.float32 and not torch.equal(found, wanted):  # in bfloat16 near ties fall either way
            raise InputError("bench gpu: GPT-2 over a static cache does not write what generate writes")

    runs: dict[str, Run] = {"ours": ours(model, tokens), "transformers": generate(other, tokens),
                            "static": torch.inference_mode()(static.write_on)}
    if batch == 1:
        runs["plain"] = plain(model, tokens)
    times = timed(runs, rounds)
    n, kind = batch * WRITTEN, str(dtype).removeprefix("torch.")
    what = f"writing {WRITTEN} tokens after {CONTEXT}, {name} {kind}, batch {batch}, against"
    rows = [row(f"{what} {rival} in transformers' generate", "tokens/s", n / times["ours"], n / times["transformers"],
                times["transformers"] / times["ours"], 1.0),
            row(f"{what} {rival} recorded over a static cache", "tokens/s", n / times["ours"], n / times["static"],
                times["static"] / times["ours"])]
    if "plain" in times:
        rows.append(row(f"{what} itself kernel by kernel", "tokens/s", n / times["ours"], n / times["plain"],
                        times["plain"] / times["ours"]))
    if joules:
        counted = {key: _joules(runs[key], n) for key in ("ours", "transformers", "static")}
        energy[f"{name} {kind}, batch {batch}"] = counted
        mean = {key: counted[key]["joules_per_token"]["mean"] for key in counted if counted[key]}
        rows += [row(f"energy of {what} {rival} {label}", "J/token", mean["ours"], mean[key], mean[key] / mean["ours"])
                 for key, label in (("transformers", "in transformers' generate"),
                                    ("static", "recorded over a static cache")) if mean]
    return rows


def _joules(run: Run, tokens: int) -> dict[str, Any]:
    """Joules a token by NVML, net of idle power; empty where the GPU counts none."""
    found, _ = counters.nvml()

    def work() -> int:
        run()
        torch.cuda.synchronize()
        return tokens

    return counters.measure(found, work, seconds=2.0, repeats=3) if found else {}


def prefill_rows(name: str, rival: str, batch: int, seq_len: int, device: torch.device, rounds: int
                 ) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model: Any = build(at_length(name, seq_len)).to(device, torch.bfloat16).eval()
    other = transformers_model(rival, seq_len, torch.bfloat16, device).eval()
    tokens = tokens_of(model.config, batch, seq_len - 1).to(device)

    def read() -> Tensor:
        with torch.inference_mode():
            return model.head(model.features(tokens)[0][:, -1])

    def rival_reads() -> Tensor:
        with torch.inference_mode():
            return other(tokens, use_cache=True, logits_to_keep=1).logits

    times, n = timed({"ours": read, "rival": rival_reads}, rounds), batch * seq_len
    return [row(f"reading {batch} x {seq_len} tokens, {name} bfloat16 against {rival} in transformers", "tokens/s",
                n / times["ours"], n / times["rival"], times["rival"] / times["ours"])]


def our_step(name: str, batch: int, seq_len: int, device: torch.device) -> Run:
    """The recorded step of `symboliclight train`."""
    torch.manual_seed(0)
    config = at_length(name, seq_len)
    model = build(config).to(device).train()
    ids = tokens_of(config, batch, seq_len).numpy()
    pair = (ids[:, :-1].copy(), ids[:, 1:].copy())
    recorded = GraphedStep(model, adamw(model, RECIPE), RECIPE, pair)
    return lambda: recorded(pair, RECIPE.lr)


def transformers_step(name: str, batch: int, seq_len: int, device: torch.device) -> Run:
    """The step written with `transformers` alone: its own loss, autocast, clipping, fused AdamW."""
    model = transformers_model(name, seq_len, torch.float32, device).train()
    optimizer, ids = adamw(model, RECIPE), tokens_of(at_length(name, seq_len), batch, seq_len)[:, :-1].to(device)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip)
        optimizer.step()

    return run


def train_rows(name: str, rival: str, batch: int, seq_len: int, device: torch.device, rounds: int
               ) -> list[dict[str, Any]]:
    """One after the other, so that each has the memory to itself."""
    contenders: dict[str, Callable[[], Run]] = {
        "ours": lambda: our_step(name, batch, seq_len, device),
        "transformers": lambda: transformers_step(rival, batch, seq_len, device),
        "recorded": lambda: our_step(rival, batch, seq_len, device)}
    times, memory = {}, {}
    for key, make in contenders.items():
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        times[key] = timed({key: make()}, rounds)[key]
        memory[key] = (torch.cuda.max_memory_allocated() - before) / 2**20
    n, what = batch * seq_len, f"training step, {name} against {rival}, {batch} x {seq_len} tokens, bf16"
    return [row(f"{what}, transformers", "tokens/s", n / times["ours"], n / times["transformers"],
                times["transformers"] / times["ours"]),
            row(f"{what}, GPT-2 in our own recorded step", "tokens/s", n / times["ours"], n / times["recorded"],
                times["recorded"] / times["ours"]),
            row(f"peak memory of that {what}, transformers", "MiB", memory["ours"], memory["transformers"],
                memory["transformers"] / memory["ours"])]


def run(directory: Path, quick: bool = False) -> Path:
    """Measure and write results/bench-gpu.json; `quick` takes small models to test the benchmark."""
    if not torch.cuda.is_available():
        raise InputError("bench gpu needs a CUDA device, and torch sees none here; the other benchmarks run on the CPU")
    device, rounds = torch.device("cuda"), 3 if quick else 7
    name, rival = ("mini", "gpt2-mini") if quick else ("v1-194m", "gpt2-201m")
    check("mini", device)
    energy: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for batch, dtype in ((1, torch.float32), (1, torch.bfloat16), (16, torch.bfloat16), (64, torch.bfloat16)):
        joules = dtype == torch.bfloat16 and batch in (1, 64) and not quick
        rows += decode_rows(name, rival, batch, dtype, device, joules, rounds, energy)
    rows += prefill_rows(name, rival, 2 if quick else 8, 256 if quick else 1024, device, rounds)
    rows += [] if quick else prefill_rows(name, rival, 1, 8192, device, rounds)
    rows += train_rows("mini", "gpt2-mini", 8 if quick else 64, 512, device, rounds)
    rows += [] if quick else train_rows(name, rival, 16, 1024, device, rounds)
    return write("gpu", rows, directory, quick=quick, device=torch.cuda.get_device_name(), energy=energy)
