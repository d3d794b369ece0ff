"""Training batches that can be resumed, and fixed windows for evaluation.

Legend: B batch (sequences), T seq_len (tokens). A window is T + 1 tokens: T inputs and the T targets one later.

Each sequence comes from the domain that is furthest behind its weight, so shares follow the weights as closely as
whole sequences allow. A domain is a ring: an epoch starts at a random offset, cuts the ring into windows and visits
them in random order. Offset and order are a function of (seed, split, domain, epoch), so the only state is the
number of sequences drawn from each domain.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from symboliclight.data.shards import Shards
from symboliclight.errors import InputError


class Batches:
    """An endless stream of batches; `next()` draws one, `cursor` says where it stands."""

    def __init__(self, shards: Shards, split: str, weights: Mapping[str, float], seq_len: int, batch_size: int,
                 seed: int, cursor: Mapping[str, Any] | None = None) -> None:
        """`weights`: domain -> relative share; empty means in proportion to tokens. `cursor`: where to go on.

        Raises `InputError` for an unknown domain, one with less than a window of tokens, weights that are not
        positive, or a cursor of other data, weights, seed or length.
        """
        if seq_len < 1 or batch_size < 1:
            raise InputError(f"seq_len and batch_size must be positive, got {seq_len} and {batch_size}")
        self._batch_size = batch_size
        share = _shares(shards, split, weights)
        self._domains = {name: _Ring(shards.tokens(split, name), seq_len, f"{seed}:{split}:{name}", name)
                         for name in share}
        self._share = share
        self._identity = {"data_hash": shards.data_hash, "tokenizer_hash": shards.tokenizer_hash, "split": split,
                          "weights": share, "seq_len": seq_len, "seed": seed}
        self._drawn = dict.fromkeys(share, 0)
        if cursor is not None:
            self._restore(cursor)

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """The next (tokens, targets), each (B, T) int64."""
        windows = np.stack([self._draw() for _ in range(self._batch_size)])
        return _shifted(windows)

    @property
    def epochs(self) -> dict[str, float]:
        """Passes made over each domain so far."""
        return {name: drawn / self._domains[name].windows for name, drawn in self._drawn.items()}

    @property
    def cursor(self) -> dict[str, Any]:
        """Position, as plain JSON values: sequences drawn per domain, and what they were drawn from."""
        return {**self._identity, "weights": dict(self._share), "drawn": dict(self._drawn)}

    def _draw(self) -> np.ndarray:
        turn = sum(self._drawn.values()) + 1
        name = max(self._share, key=lambda d: self._share[d] * turn - self._drawn[d])
        window = self._domains[name].window(self._drawn[name])
        self._drawn[name] += 1
        return window

    def _restore(self, cursor: Mapping[str, Any]) -> None:
        for key, value in self._identity.items():
            if cursor.get(key) != value:
                raise InputError(f"the run to resume was made with {key} {cursor.get(key)!r}, now it is {value!r}; "
                                 "resume with the same data and options")
        drawn = cursor.get("drawn")
        if (not isinstance(drawn, Mapping) or drawn.keys() != self._drawn.keys()
                or not all(isinstance(count, int) and count >= 0 for count in drawn.values())):
            raise InputError("the data cursor of the run to resume is damaged; resume from another checkpoint")
        self._drawn = {name: drawn[name] for name in self._drawn}


class _Ring:
    """The windows of one domain."""

    def __init__(self, tokens: np.ndarray, seq_len: int, key: str, name: str) -> None:
        self.windows = len(tokens) // seq_len  # an epoch; less than one window of the ring stays unseen in each
        if len(tokens) <= seq_len:
            raise InputError(f"domain {name!r} has {len(tokens)} tokens, too few for one window of {seq_len} + 1; "
                             "lower --seq-len or leave the domain out of the weights")
        self._tokens, self._seq_len, self._key = tokens, seq_len, key
        self._epoch = -1
        self._offset = 0
        self._order = np.empty(0, dtype=np.int64)

    def window(self, index: int) -> np.ndarray:
        """Window number `index` since the start of training, (T + 1,) int64."""
        epoch, position = divmod(index, self.windows)
        if epoch != self._epoch:
            self._shuffle(epoch)
        start = (self._offset + int(self._order[position]) * self._seq_len) % len(self._tokens)
        window = self._tokens[start:start + self._seq_len + 1]
        missing = self._seq_len + 1 - len(window)
        return np.concatenate([window, self._tokens[:missing]]).astype(np.int64)

    def _shuffle(self, epoch: int) -> None:
        # Raw Philox words, not Generator.permutation: only the bit stream is fixed across numpy versions.
        digest = hashlib.sha256(f"{self._key}:{epoch}".encode()).digest()
        words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(self.windows + 1)
        self._epoch, self._offset = epoch, int(words[0] % len(self._tokens))
        self._order = np.argsort(words[1:], kind="stable")


def _shares(shards: Shards, split: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Shares that sum to 1, in sorted order; domains with weight 0 are left out."""
    known = shards.domains(split)
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise InputError(f"weights name unknown domain {', '.join(unknown)}; {shards.path} has: {', '.join(known)}")
    bad = [name for name, weight in weights.items() if not (0 <= weight < math.inf)]
    if bad or (weights and not any(weights.values())):
        raise InputError(f"weights must be finite, not negative and not all 0, got {dict(weights)}")
    raw = dict(weights) or {name: float(shards.splits[split][name]["tokens"]) for name in known}
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
