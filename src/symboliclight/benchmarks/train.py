"""`bench train`: training steps beside GPT-2, their peak memory, and where the time of a step goes.

GPT-2 is `transformers.GPT2LMHeadModel` with SDPA and its own loss, as its users train it: same tokens, batch, precision
(bfloat16 autocast or float32), clipping, fused AdamW and allocator settings. Targets are judged without dropout on
either side: with dropout, SDPA on a CPU leaves its fused kernel and holds all T x T weights, which slows GPT-2 several
times. Further rows put GPT-2 into our training step, whose loss never holds all logits, and give both models their
dropout.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from symboliclight.benchmarks import parts
from symboliclight.benchmarks.harness import LABELS, medians, peak_memory, row, write
from symboliclight.core.atomic import write_atomic
from symboliclight.core.config import ModelConfig, TrainConfig, preset
from symboliclight.core.errors import InputError
from symboliclight.core.processor import Precision
from symboliclight.model import build
from symboliclight.show import plots
from symboliclight.train.optim import adamw
from symboliclight.train.runtime import keep_freed_memory
from symboliclight.train.step import losses, step

RECIPE = TrainConfig()
SMALL = 1 / 0.9  # at most 0.9 of GPT-2's memory
# ours, GPT-2, batch, T, asked of speed and of memory, rounds
Plan = tuple[str, str, int, int, tuple[float, float | None], int]
QUICK: list[Plan] = [("tiny", "gpt2-tiny", 2, 64, (1.3, SMALL), 3)]
PLANS: dict[Precision, list[Plan]] = {
    "bfloat16": [
        ("mini", "gpt2-mini", 8, 512, (1.3, SMALL), 7),
        ("v1-194m", "gpt2-201m", 4, 512, (1.3, SMALL), 5),
        ("v1-194m", "gpt2-201m", 1, 2048, (1.6, SMALL), 5),
    ],
    "float32": [  # small models, as processors without bfloat16 instructions train, and one length of the large one
        ("tiny", "gpt2-tiny", 16, 256, (1.5, None), 15),
        ("mini", "gpt2-mini", 8, 512, (1.5, SMALL), 9),
        ("v1-194m", "gpt2-201m", 2, 512, (1.3, SMALL), 3),
    ],
}


def tokens_of(config: ModelConfig, batch: int, seq_len: int) -> Tensor:
    """Fixed random tokens (batch, seq_len + 1)."""
    return torch.randint(0, config.vocab_size, (batch, seq_len + 1), generator=torch.Generator().manual_seed(0))


def at_length(name: str, seq_len: int, dropout: float = 0.0) -> ModelConfig:
    """A preset with room for `seq_len` tokens."""
    config = preset(name)
    return replace(config, max_seq_len=max(config.max_seq_len, seq_len), dropout=dropout)


def our_step(name: str, batch: int, seq_len: int, precision: Precision, dropout: float = 0.0) -> Callable[[], object]:
    """The step of `symboliclight train`."""
    torch.manual_seed(0)
    config = at_length(name, seq_len, dropout)
    model = build(config).train()
    recipe = replace(RECIPE, precision=precision)
    optimizer, ids = adamw(model, recipe), tokens_of(config, batch, seq_len).numpy()
    return lambda: step(model, optimizer, [(ids[:, :-1], ids[:, 1:])], recipe, recipe.lr)


def transformers_step(name: str, batch: int, seq_len: int, precision: Precision, dropout: float = 0.0
                      ) -> Callable[[], object]:
    """The same step written with `transformers` alone."""
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    config = at_length(name, seq_len, dropout)
    wrapped: Any = build(config)
    model = GPT2LMHeadModel(wrapped.transformer.config).train()
    optimizer, ids = adamw(model, RECIPE), tokens_of(config, batch, seq_len)[:, :-1]

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with parts.in_precision(precision):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip)
        optimizer.step()

    return run


STEPS = {"ours": our_step, "transformers": transformers_step}


def alone(expression: str) -> Any:
    """Value of an expression over this module (`t`) in a process of its own, so that no memory is left from before."""
    code = ("import json, torch, transformers.models.gpt2, symboliclight.benchmarks.train as t\n"
            f"torch.set_num_threads({torch.get_num_threads()})\n"
            "t.keep_freed_memory()\n"  # as training does; here for both sides
            f"print(json.dumps(t.{expression}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip()[-300:] or f"killed by signal {-done.returncode}, perhaps for want of memory"
        raise InputError(f"bench train: {expression} failed in its own process: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes(kind: str, name: str, batch: int, seq_len: int, precision: Precision) -> int:
    """Peak resident memory of two steps, above what the process had before the model was built."""
    before = peak_memory(reset=True)
    run = STEPS[kind](name, batch, seq_len, precision)
    run()
    run()
    return peak_memory() - before


def seconds(
    ours: str, kind: str, rival: str, batch: int, seq_len: int, precision: Precision, dropout: float, rounds: int
) -> dict[str, float]:
    """Median seconds of a step of `ours` and of the rival, in turns."""
    return medians({"ours": our_step(ours, batch, seq_len, precision, dropout),
                    "rival": STEPS[kind](rival, batch, seq_len, precision, dropout)}, rounds)


def check(name: str) -> None:
    """The training loss and its gradients must be those of the torch forms in float32."""
    from symboliclight.ops.native import torch_forms

    config = replace(preset(name), dropout=0.0)
    tokens, exact = tokens_of(config, 2, 96), replace(RECIPE, precision="float32")
    found = []
    for form in (nullcontext, torch_forms):
        torch.manual_seed(0)
        model = build(config).train()
        with form():
            loss, _ = losses(model, tokens[:, :-1], tokens[:, 1:], exact)
            loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        found.append((float(loss.detach()), float(norm)))
    if not all(abs(a / b - 1) <= 1e-4 for a, b in zip(*found, strict=True)):
        raise InputError(f"bench train: native and torch forms disagree ({found}); nothing was measured")


def versus(plan: Plan, precision: Precision) -> list[dict]:
    """Rows of one comparison: speed against transformers and against our own step of GPT-2, and memory."""
    ours, rival, batch, seq_len, targets, rounds = plan
    what = f"training step, {ours} against {rival}, T {seq_len}, batch {batch}, {LABELS[precision]}"
    dropout = preset(ours).dropout
    rows = []
    contests = [("transformers", "transformers", 0.0, targets[0]), ("GPT-2 in our own step", "ours", 0.0, None)]
    if dropout:
        contests.append((f"transformers, both with dropout {dropout:g}", "transformers", dropout, None))
    for label, kind, rate, target in contests:
        times = alone(f"seconds({ours!r}, {kind!r}, {rival!r}, {batch}, {seq_len}, {precision!r}, {rate}, {rounds})")
        speed, against = (batch * seq_len / times[name] for name in ("ours", "rival"))
        rows.append(row(f"{what}, {label}", "tokens/s", speed, against, speed / against, target))
    memory = {kind: alone(f"peak_bytes({kind!r}, {name!r}, {batch}, {seq_len}, {precision!r})") / 2**20
              for kind, name in (("ours", ours), ("transformers", rival))}
    ratio = memory["transformers"] / memory["ours"]
    rows.append(row(f"peak memory of that step, {ours} against {rival}, T {seq_len}", "MiB", memory["ours"],
                    memory["transformers"], ratio, targets[1]))
    return rows


def run(directory: Path, quick: bool = False, precision: Precision = "bfloat16") -> Path:
    """Measure and write results/bench-train.json and its chart; `quick` takes small models to test the benchmark."""
    check("tiny")
    keep_freed_memory()
    plans = QUICK if quick else PLANS[precision]
    rows = [r for plan in plans for r in versus(plan, precision)]
    chosen, rival, batch, seq_len = next(plan for plan in plans if quick or plan[0] == "v1-194m")[:4]
    profile = {name: parts.profile(at_length(name, seq_len), batch, seq_len, precision) for name in (chosen, rival)}
    path = write("train", rows, directory, threads=torch.get_num_threads(), quick=quick, precision=precision,
                 batch=batch, seq_len=seq_len, limits=parts.limits(precision), parts=profile)
    stored = json.loads(path.read_text(encoding="utf-8"))
    write_atomic(directory / "bench-train.svg", plots.plot_parts(stored["parts"]))
    return path
