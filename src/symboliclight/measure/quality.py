"""What a precision of the torch-free runtime costs: perplexity, spikes and choices beside float32, domain by domain."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from symboliclight.core.tokenizer import Tokenizer
from symboliclight.data.batches import eval_windows
from symboliclight.data.shards import Shards
from symboliclight.engine.model import Engine
from symboliclight.measure.likelihood import nats

TOKENS_AT_ONCE = 2048


def windows_of(
    shards: Shards, tokenizer: Tokenizer, split: str, seq_len: int, max_tokens: int
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Domain -> fixed windows (tokens, targets), each (B, T), at most `max_tokens` a domain."""
    shards.require(tokenizer)
    batch = max(1, TOKENS_AT_ONCE // seq_len)
    return {name: list(eval_windows(shards, split, name, seq_len, max_tokens, batch)) for name in shards.domains(split)}


def compare(
    reference: Engine, others: Mapping[str, Engine], domains: Mapping[str, Iterable[tuple[np.ndarray, np.ndarray]]],
    on_tokens: Callable[[int], None] = lambda count: None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Name of an engine -> domain -> figures, `reference` first under "float32".

    perplexity: e to the mean nats a token; perplexity_change: relative to the reference; mismatch: share of (token,
    unit) pairs that spike in one and not in the other, by kind of site and over all; top1: share of tokens with the
    same most likely successor. Windows start without a state and see their own tokens, not what was generated.
    """
    engines = {"float32": reference, **others}
    out: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in engines}
    for domain, windows in domains.items():
        sums = {name: _Sums() for name in engines}
        for tokens, targets in windows:
            expected: tuple[np.ndarray, dict[str, np.ndarray]] | None = None
            for name, engine in engines.items():
                logits, spikes, _ = engine.trace(tokens)
                best = logits.argmax(-1)
                expected = expected or (best, spikes)
                sums[name].add(nats(logits, targets), best == expected[0], spikes, expected[1])
            on_tokens(targets.size)
        for name, found in sums.items():
            out[name][domain] = found.figures()
            change = out[name][domain]["perplexity"] / out["float32"][domain]["perplexity"] - 1
            out[name][domain]["perplexity_change"] = change
    return out


def means(domains: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Unweighted means over domains of one engine's figures; perplexity from the mean of nats."""
    each = list(domains.values())
    return {
        "perplexity": float(np.exp(np.mean([np.log(d["perplexity"]) for d in each]))),
        "perplexity_change": float(np.mean([d["perplexity_change"] for d in each])),
        "mismatch": float(np.mean([d["mismatch"]["all"] for d in each])),
        "top1": float(np.mean([d["top1"] for d in each])),
    }


class _Sums:
    def __init__(self) -> None:
        self.nats, self.same, self.tokens = 0.0, 0, 0
        self.differ: dict[str, int] = {}
        self.pairs: dict[str, int] = {}

    def add(self, nats: np.ndarray, same: np.ndarray, spikes: dict[str, np.ndarray],
            expected: dict[str, np.ndarray]) -> None:
        self.nats += float(nats.sum())
        self.same += int(same.sum())
        self.tokens += nats.size
        for site, found in spikes.items():
            for kind in (site.split(".")[0], "all"):
                self.differ[kind] = self.differ.get(kind, 0) + int((found != expected[site]).sum())
                self.pairs[kind] = self.pairs.get(kind, 0) + found.size

    def figures(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "perplexity": float(np.exp(self.nats / self.tokens)),
                "mismatch": {kind: self.differ[kind] / self.pairs[kind] for kind in self.pairs} or {"all": 0.0},
                "top1": self.same / self.tokens}
