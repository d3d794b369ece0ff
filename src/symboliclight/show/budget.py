"""How many tokens the two models of the demo read in the minutes given: measured once, written down, then kept.

Nothing that is trained depends on the clock: the budget lies in a file before the first step, and an interrupted demo
goes on with that.
"""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from symboliclight.core.atomic import write_atomic
from symboliclight.core.config import RunConfig
from symboliclight.core.errors import InputError
from symboliclight.core.processor import training_precision
from symboliclight.data.batches import Batches
from symboliclight.data.shards import Shards
from symboliclight.measure.evaluate import evaluate
from symboliclight.model import build
from symboliclight.train.optim import optimizer
from symboliclight.train.runtime import keep_freed_memory
from symboliclight.train.step import step

FILE = "budget.json"
FEWEST = 98_304  # tokens of a budget: below, learning curves mean little
PASSES = 4  # over the training split: more teach so small a corpus by heart
STEPS, SECONDS = 3, 2.0  # of a probe, whichever is more
EVALUATED = 512  # tokens of each domain, in a probe


@dataclass(frozen=True)
class Pace:
    """Tokens a second of one model, in training and when it is evaluated."""

    train: float
    evaluate: float


@dataclass(frozen=True)
class Budget:
    """Tokens that each of the models reads, and what decided it."""

    tokens: int
    minutes: float | None  # asked for; None where tokens were
    precision: str
    threads: int
    paces: dict[str, Pace]  # by preset; empty where tokens were asked for
    limit: str = "time"  # what decided: time, the least that makes sense, passes over the corpus, or tokens as asked

    def reason(self) -> str:
        """Why so many tokens, as a sentence for people."""
        if self.minutes is None:
            return "So many were asked for."
        rates = " and ".join(f"{p.train:,.0f}" for p in self.paces.values())
        measured = (f"measured before the first step, on {self.threads} thread{'s' * (self.threads > 1)} in "
                    f"{self.precision}: {rates} tokens a second")
        if self.limit == "least":
            return f"Fewer would teach too little, and {self.minutes:g} min are too short for them here ({measured})."
        if self.limit == "passes":
            return f"That is {PASSES} passes over the corpus, for which {self.minutes:g} min leave room ({measured})."
        return f"So many fit into {self.minutes:g} min on this machine ({measured})."


def agreed(out: Path, tokens: int | None, minutes: float, deadline: float, runs: Mapping[str, RunConfig],
           shards: Shards) -> Budget:
    """The budget in folder `out`, or a new one: `tokens` if given, else what the models can read until `deadline`.

    Args: minutes: what was asked for. deadline: by time.perf_counter. runs: the training run of each preset, whatever
        its budget.
    """
    if (out / FILE).exists():
        found = read(out / FILE)
        if tokens not in (None, found.tokens):
            raise InputError(f"{out} holds a demo of {found.tokens} tokens, not {tokens}; leave out --tokens to go on "
                             "with it, or name another --out")
        return found
    first = next(iter(runs.values()))
    precision, threads = training_precision(first.train.precision), torch.get_num_threads()
    if tokens is not None:
        budget = Budget(tokens, None, precision, threads, {}, "asked")
    else:
        paces = {name: probe(run, shards) for name, run in runs.items()}
        step_tokens = first.train.batch_size * first.data.seq_len
        sizes = [domain["tokens"] for domain in shards.splits["validation"].values()]
        most = PASSES * train_tokens(shards) // step_tokens
        steps, limit = fit(deadline - time.perf_counter(), list(paces.values()), step_tokens, most, sizes)
        budget = Budget(steps * step_tokens, minutes, precision, threads, paces, limit)
    write_atomic(out / FILE, (json.dumps(asdict(budget), indent=1) + "\n").encode())
    return budget


def fit(seconds: float, paces: Sequence[Pace], step_tokens: int, most: int, sizes: Sequence[int]) -> tuple[int, str]:
    """Steps that every model can take in `seconds`, at most `most`, and what limits them.

    `sizes`: held-out tokens of each domain.
    """
    step = sum(step_tokens / p.train for p in paces)
    token = sum(1 / p.evaluate for p in paces)  # seconds that all of them take to evaluate one
    fewest = FEWEST // step_tokens
    for steps in range(most, fewest, -1):
        plan = schedule(steps, step_tokens)
        once, each = (sum(min(size, n) for size in sizes) for n in (plan.evaluated, plan.validated))
        if steps * step + (once + plan.validations * each) * token <= seconds:
            return steps, "passes" if steps == most else "time"
    return fewest, "least"


@dataclass(frozen=True)
class Schedule:
    """What follows from the number of steps."""

    validations: int
    validated: int  # tokens of each domain, by every validation
    evaluated: int  # the same, after training


def schedule(steps: int, step_tokens: int) -> Schedule:
    """The schedule of a run of so many steps: few steps are measured on fewer tokens."""
    evaluated = min(24_576, max(512, steps * step_tokens // 32))
    return Schedule(min(12, max(1, steps // 8)), min(8192, evaluated), evaluated)


def train_tokens(shards: Shards) -> int:
    """Tokens of the training split."""
    return sum(domain["tokens"] for domain in shards.splits["train"].values())


def probe(run: RunConfig, shards: Shards) -> Pace:
    """The pace of a model at its start, measured on steps that are thrown away."""
    keep_freed_memory()
    torch.manual_seed(run.train.seed)
    model, config = build(run.model).train(), run.train
    batches = Batches(shards, "train", run.data.weights, run.data.seq_len, config.batch_size, config.seed,
                      packing=run.data.packing, loss=run.data.loss)
    update, begin = optimizer(model, config), time.perf_counter()
    taken: list[float] = []
    while len(taken) <= STEPS or time.perf_counter() - begin < SECONDS:
        start = time.perf_counter()
        step(model, update, [batches.next()], config, config.lr)
        taken.append(time.perf_counter() - start)
    train = config.batch_size * run.data.seq_len / statistics.median(taken[1:])
    tokenizer = shards.tokenizer()
    for _ in range(2):  # the first of a process is slower than any other
        start = time.perf_counter()
        evaluate(model.eval(), tokenizer, shards, "validation", EVALUATED, run.data.seq_len)
    return Pace(train, EVALUATED * len(shards.domains("validation")) / (time.perf_counter() - start))


def read(path: Path) -> Budget:
    """The budget in a file. Raises `InputError` if it is damaged."""
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Budget(**{**body, "paces": {name: Pace(**pace) for name, pace in body["paces"].items()}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it, or name another --out") from error
