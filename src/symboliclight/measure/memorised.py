"""Does a model give back what it was trained on? Passages of training documents, continued greedily."""

from collections.abc import Callable
from typing import Any

import numpy as np

from symboliclight.core.tokenizer import Tokenizer
from symboliclight.data.shards import Shards
from symboliclight.generate.distribution import Sampling
from symboliclight.generate.sampling import generate

PASSAGE = 50  # tokens that are shown, and as many that would have to come back
ROWS = 16  # continued together


def measure(
    model: Any, tokenizer: Tokenizer, shards: Shards, passages: int, seed: int = 0,
    on_passages: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Share of `passages` a domain, drawn from the training split, whose next `PASSAGE` tokens come back verbatim.

    A passage lies within one document; a domain of which no document is that long is left out.
    """
    rng, domains = np.random.default_rng(seed), {}
    for domain in shards.domains("train"):
        tokens = shards.tokens("train", domain)
        starts = _starts(tokens, tokenizer.eos_id, rng, passages)
        if not starts:
            continue
        same = 0
        for group in (starts[i: i + ROWS] for i in range(0, len(starts), ROWS)):
            seen = [tokens[i: i + PASSAGE].tolist() for i in group]
            hidden = [tokens[i + PASSAGE: i + 2 * PASSAGE].tolist() for i in group]
            written = generate(model, tokenizer, seen, PASSAGE, Sampling(temperature=0), stop_ids=())
            same += sum(one.ids == rest for one, rest in zip(written, hidden, strict=True))
            on_passages(len(group))
        domains[domain] = {"passages": len(starts), "verbatim": same}
    total = sum(d["passages"] for d in domains.values())
    return {"tokens": PASSAGE, "passages": total, "verbatim": sum(d["verbatim"] for d in domains.values()),
            "domains": domains}


def _starts(tokens: np.ndarray, end: int, rng: np.random.Generator, count: int) -> list[int]:
    """At most `count` beginnings of passages, in tries enough to find them where documents are mostly long."""
    if len(tokens) < 2 * PASSAGE:
        return []
    tries = rng.integers(0, len(tokens) - 2 * PASSAGE + 1, 50 * count)
    free = (int(i) for i in tries if not (tokens[i: i + 2 * PASSAGE] == end).any())
    return [i for i, _ in zip(free, range(count), strict=False)]
