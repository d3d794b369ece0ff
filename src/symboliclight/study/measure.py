"""What a study knows of a finished run: the body of its result file, from the run folder and a split of the data.

The model computes in the precision that it was trained in. Losses are in nats a token, sparsity is the silent fraction
of a spike site, operations are counted a token. Everything is rounded to six significant digits.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from symboliclight.data.batches import eval_windows
from symboliclight.data.shards import Shards
from symboliclight.measure.evaluate import evaluate
from symboliclight.measure.operations import OperationMeter
from symboliclight.model import build, load
from symboliclight.model.sites import spike_sites
from symboliclight.model.step import inference, token_nll
from symboliclight.study.plan import Run
from symboliclight.train.log import METRICS
from symboliclight.train.step import autocast

TEST_TOKENS = 16_384  # a domain, for losses and sparsity after training
START_TOKENS = 2048  # a domain, for sparsity at initialisation and for operations
RATE_POINTS = 10  # lines of the learning curve that keep the firing rates


def measure(run: Run, shards: Shards, directory: Path, split: str, precision: str) -> dict[str, Any]:
    """Evaluate the last checkpoint of the run in `directory` on `split`, and its model as it was initialised.

    `precision` is what it was trained in.

    The entry is called test whatever the split, which stands in it.
    """
    tokenizer, length = shards.tokenizer(), run.config.data.seq_len
    model, _ = load(directory)
    with autocast(torch.device("cpu"), precision):
        trained = evaluate(model, tokenizer, shards, split, TEST_TOKENS, length)
        torch.manual_seed(run.seed)  # as training does
        fresh = build(run.config.model).eval()
        start = evaluate(fresh, tokenizer, shards, split, START_TOKENS, length) if spike_sites(fresh) else trained
        operations = count_operations(model, shards, length, split)
        controls = matching_controls(model, shards, length, split)
    return rounded({
        "test": {key: trained[key] for key in ("split", "seq_len", "max_tokens", "domains", "languages", "mean")},
        "sparsity": {"start": start["sparsity"], "trained": trained["sparsity"], "start_tokens": START_TOKENS},
        "operations": operations, "controls": controls,
    })


def count_operations(model: Any, shards: Shards, seq_len: int, split: str) -> dict[str, Any]:
    """What `OperationMeter` reports over the first windows of every domain: operations a token by part."""
    with OperationMeter(model) as meter:
        for domain in shards.domains(split):
            for tokens, targets in eval_windows(shards, split, domain, seq_len, START_TOKENS):
                token_nll(model, tokens, targets)
    return meter.report()


def matching_controls(model: Any, shards: Shards, seq_len: int, split: str = "test") -> dict[str, float]:
    """What the controls of a LIF encoder must be set to for its own rate: `topk_rate` is its spikes a unit and token,
    `encoder_threshold` the level that so large a share of its input currents reaches. Empty for other models."""
    if model.config.family != "symboliclight" or model.config.spike_source != "lif":
        return {}
    spikes, currents = [], []
    with inference(model):
        for domain in shards.domains(split):
            for tokens, _ in eval_windows(shards, split, domain, seq_len, START_TOKENS):
                s, x, _ = model.encoder(torch.from_numpy(tokens), model.initial_state(len(tokens)).v, None)
                spikes.append(s.float().mean().item())
                currents.append(x.float().numpy().ravel())
    rate = float(np.average(spikes, weights=[len(x) for x in currents]))
    return {"topk_rate": rate, "encoder_threshold": float(np.quantile(np.concatenate(currents), 1 - rate))}


def curves(directory: Path) -> dict[str, Any]:
    """The learning curve in a run's log: columns of the training lines, and every validation by domain."""
    lines = [json.loads(line) for line in (directory / METRICS).read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line["event"] == "train"]
    every = max(1, len(steps) // RATE_POINTS)
    return rounded({
        "train": {"tokens": [line["trained_tokens"] for line in steps], "nats": [line["loss"] for line in steps],
                  "grad_norm": [line["grad_norm"] for line in steps]},
        "rates": [{"tokens": line["trained_tokens"], "sites": line["spikes"]}
                  for line in steps[every - 1 :: every] if line["spikes"]],
        "validation": [{"tokens": line["trained_tokens"], "nats": line["nats_per_token"],
                        "bits_per_byte": line["bits_per_byte"],
                        "domains": {name: d["nats_per_token"] for name, d in line["domains"].items()}}
                       for line in lines if line["event"] == "validation"],
        "rollbacks": [{key: line[key] for key in ("step", "to", "lr_scale", "loss")}
                      for line in lines if line["event"] == "rollback"],
    })


def rounded(value: Any, digits: int = 6) -> Any:
    """`value` with every float at `digits` significant digits."""
    if isinstance(value, dict):
        return {name: rounded(x, digits) for name, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(x, digits) for x in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
