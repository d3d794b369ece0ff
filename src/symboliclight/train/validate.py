"""Validation during a run."""

import math
from typing import Any

import numpy as np
from torch import nn

from symboliclight.core.config import RunConfig
from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.data import Shards, eval_windows
from symboliclight.data.turns import said
from symboliclight.model.step import token_nll
from symboliclight.train.step import autocast

SPLIT = "validation"


def validation_domains(shards: Shards, run: RunConfig) -> list[str]:
    """Domains that are trained on and have validation tokens."""
    return [name for name in shards.domains(SPLIT) if not run.data.weights or run.data.weights.get(name)]


def validate(model: nn.Module, shards: Shards, tokenizer: Tokenizer, run: RunConfig) -> dict[str, Any]:
    """Cross-entropy on fixed windows of the validation split, at most `train.eval_tokens` a domain; of answers alone
    where `data.loss` is "answers".

    Returns `nats_per_token`, `bits_per_byte` (of the targets' text) and `tokens`, over all domains token by token,
    and the same for each domain under `domains`.
    """
    device = next(model.parameters()).device
    sums: dict[str, list[float]] = {}  # domain -> nats, tokens, bytes
    for domain in validation_domains(shards, run):
        total = sums.setdefault(domain, [0.0, 0, 0])
        windows = eval_windows(shards, SPLIT, domain, run.data.seq_len, run.train.eval_tokens, run.train.batch_size)
        for tokens, targets in windows:
            with autocast(device, run.train.precision):
                nll = token_nll(model, tokens, targets)
            counts = np.ones(targets.shape, bool)
            if run.data.loss == "answers":
                counts = said(np.concatenate([tokens[:, :1], targets], 1), tokenizer)[:, 1:]
            total[0] += float(nll[counts].sum(dtype="float64"))
            total[1] += int(counts.sum())
            total[2] += int(tokenizer.piece_bytes[targets[counts]].sum())
    whole = [sum(column) for column in zip(*sums.values(), strict=True)]
    if not whole[1]:
        raise InputError(f"the validation windows of {shards.path} hold no answer; raise train.eval_tokens")
    return {**_figures(*whole), "domains": {name: _figures(*total) for name, total in sums.items() if total[1]}}


def _figures(nats: float, tokens: float, size: float) -> dict[str, float]:
    return {"nats_per_token": nats / tokens, "bits_per_byte": nats / math.log(2) / max(size, 1), "tokens": int(tokens)}
