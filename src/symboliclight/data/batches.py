"""Training batches that can be resumed, and fixed windows for evaluation.

Legend: B batch (sequences), T seq_len (tokens). A window is T + 1 tokens: T inputs and the T targets one later.

Each sequence comes from the domain that is furthest behind its weight, so shares follow the weights as closely as
whole sequences allow. What the sequences of a domain are (packing.py) is a function of (seed, split, domain, epoch), so
the only state is the number of sequences drawn from each domain.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.data.packing import PADDING, Documents, Packing, Stream
from symboliclight.data.shards import Shards
from symboliclight.data.turns import Answers

IGNORED = -1  # target that the loss leaves out
_BEFORE_OPTIONS = {"packing": "stream", "loss": "all"}  # what cursors that do not name them were drawn with


class Batches:
    """An endless stream of batches; `next()` draws one, `cursor` says where it stands."""

    def __init__(self, shards: Shards, split: str, weights: Mapping[str, float], seq_len: int, batch_size: int,
                 seed: int, cursor: Mapping[str, Any] | None = None,
                 packing: Literal["stream", "documents"] = "stream", loss: Literal["all", "answers"] = "all") -> None:
        """`weights`: domain -> relative share; empty means in proportion to tokens, times the repeats of a recipe.
        `cursor`: where to go on. `packing`, `loss`: as in `DataConfig`.

        Raises `InputError` for an unknown domain, one with less than a window of tokens, weights that are not
        positive, or a cursor of other data, weights, seed or length.
        """
        if seq_len < 1 or batch_size < 1:
            raise InputError(f"seq_len and batch_size must be positive, got {seq_len} and {batch_size}")
        self._batch_size = batch_size
        share = _shares(shards, split, weights)
        self._tokens = {name: shards.tokens(split, name) for name in share}
        tokenizer = None if (packing, loss) == ("stream", "all") else shards.tokenizer()
        self._fill = max(tokenizer.pad_id, 0) if tokenizer else 0
        self._answers = {name: Answers(tokens, tokenizer)
                         for name, tokens in self._tokens.items()} if tokenizer and loss == "answers" else {}
        if self._answers and not any(answers.turns for answers in self._answers.values()):
            raise InputError(f'{shards.path} holds no turn of the assistant, which data.loss = "answers" is for; take '
                             "shards with conversations, or leave data.loss out")
        self._domains: dict[str, Packing] = {}
        for name, tokens in self._tokens.items():
            key = f"{seed}:{split}:{name}"
            self._domains[name] = (Documents(tokens, seq_len, key, tokenizer.bos_id, name)
                                   if tokenizer and packing == "documents" else Stream(tokens, seq_len, key, name))
        self._share = share
        self._identity = {"data_hash": shards.data_hash, "tokenizer_hash": shards.tokenizer_hash, "split": split,
                          "weights": share, "seq_len": seq_len, "seed": seed, "packing": packing, "loss": loss}
        self._drawn = dict.fromkeys(share, 0)
        if cursor is not None:
            self._restore(cursor)

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """The next (tokens, targets), each (B, T) int64; targets that do not count are -1."""
        tokens, targets = zip(*(self._draw() for _ in range(self._batch_size)), strict=True)
        return np.stack(tokens), np.stack(targets)

    @property
    def epochs(self) -> dict[str, float]:
        """Passes made over each domain so far."""
        return {name: drawn / self._domains[name].windows for name, drawn in self._drawn.items()}

    @property
    def cursor(self) -> dict[str, Any]:
        """Position, as plain JSON values: sequences drawn per domain, and what they were drawn from."""
        return {**self._identity, "weights": dict(self._share), "drawn": dict(self._drawn)}

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        turn = sum(self._drawn.values()) + 1
        name = max(self._share, key=lambda d: self._share[d] * turn - self._drawn[d])
        positions, counts = self._domains[name].window(self._drawn[name])
        self._drawn[name] += 1
        ids = np.where(positions == PADDING, self._fill, self._tokens[name][positions]).astype(np.int64)
        if name in self._answers:
            counts = counts & self._answers[name].hold(positions)
        return ids[:-1], np.where(counts, ids, IGNORED)[1:]

    def _restore(self, cursor: Mapping[str, Any]) -> None:
        for key, value in self._identity.items():
            found = cursor.get(key, _BEFORE_OPTIONS.get(key))
            if found != value:
                raise InputError(f"the run to resume was made with {key} {found!r}, now it is {value!r}; "
                                 "resume with the same data and options")
        drawn = cursor.get("drawn")
        if (not isinstance(drawn, Mapping) or drawn.keys() != self._drawn.keys()
                or not all(isinstance(count, int) and count >= 0 for count in drawn.values())):
            raise InputError("the data cursor of the run to resume is damaged; resume from another checkpoint")
        self._drawn = {name: drawn[name] for name in self._drawn}


def _shares(shards: Shards, split: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Shares that sum to 1, in sorted order; domains with weight 0 are left out."""
    known = shards.domains(split)
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise InputError(f"weights name unknown domain {', '.join(unknown)}; {shards.path} has: {', '.join(known)}")
    bad = [name for name, weight in weights.items() if not (0 <= weight < math.inf)]
    if bad or (weights and not any(weights.values())):
        raise InputError(f"weights must be finite, not negative and not all 0, got {dict(weights)}")
    tokens = {name: float(shards.splits[split][name]["tokens"]) for name in known}
    raw = dict(weights) or {name: count * shards.repeats.get(name, 1) for name, count in tokens.items()}
    total = math.fsum(raw.values())
    if not raw:
        raise InputError(f"{shards.path} has no tokens in split {split!r}; build a corpus with a larger share of it")
    return {name: raw[name] / total for name in sorted(raw) if raw[name]}


def eval_windows(shards: Shards, split: str, domain: str, seq_len: int, max_tokens: int,
                 batch_size: int = 8) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield fixed (tokens, targets), each (B, T) int64: the same windows for every model with the same tokenizer.

    Windows do not overlap and are spread evenly over the domain; together they hold at most `max_tokens` targets, but
    at least one window. A domain shorter than a window is one shorter window. The last batch may be smaller.
    """
    if seq_len < 1 or max_tokens < 1 or batch_size < 1:
        raise InputError("seq_len, max_tokens and batch_size must be positive")
    tokens = shards.tokens(split, domain)
    seq_len = min(seq_len, len(tokens) - 1)
    if seq_len < 1:
        raise InputError(f"{split} of domain {domain!r} is one token; build a corpus with a larger share of it")
    slots = (len(tokens) - 1) // seq_len
    count = min(slots, max(1, max_tokens // seq_len))
    starts = [i * slots // count * seq_len for i in range(count)]
    for i in range(0, count, batch_size):
        windows = np.stack([tokens[s:s + seq_len + 1] for s in starts[i:i + batch_size]]).astype(np.int64)
        yield _shifted(windows)


def _shifted(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B, T + 1) windows -> inputs and targets, each (B, T) and contiguous."""
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])
