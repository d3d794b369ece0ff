"""Log-likelihood of continuations after contexts: what multiple-choice tasks and rolling perplexities are made of.

A context that several continuations share is read once, and its state is forked. Any model behind the seam will do.
Legend: B rows, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from symboliclight.core.tokenizer import Tokenizer
from symboliclight.generate.distribution import log_sum
from symboliclight.generate.sampling import next_logits, padded_state

ROWS = 32  # sequences read at once: each holds a state
TOKENS = 8192  # tokens read at once
LOGITS = 1 << 26  # logits of the runtime that exist at one time

Item = TypeVar("Item")
Pair = tuple[Sequence[int], Sequence[int]]  # ids of a context, at least one, and of its continuation


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of both: as of the whole text, but where a piece would span the border (in Chinese it may), each for itself.

    White space at the end of the context belongs to the continuation.
    """
    kept = context.rstrip()
    before, whole = tokenizer.encode(kept, bos=True), tokenizer.encode(context + continuation, bos=True)
    if whole[: len(before)] == before:
        return before, whole[len(before) :]
    return before, tokenizer.encode(context[len(kept) :] + continuation)


def fitted(context: list[int], continuation: list[int], length: int) -> tuple[list[int], list[int]]:
    """The pair with no more of the end of the context than lets a model of `length` tokens read it, but one token."""
    return context[-max(1, length + 1 - len(continuation)) :], continuation


def loglikelihoods(
    model: Any, pairs: Sequence[Pair], rows: int = ROWS, on_pairs: Callable[[int], None] = lambda count: None,
) -> list[tuple[float, bool]]:
    """Of each pair: the natural log-probability of the continuation, and whether greedy decoding would write it.

    At most `rows` sequences of similar length are read at once. `on_pairs` is told the pairs done. An empty
    continuation is certain. Raises `InputError` where a model with a limited context is given more.
    """
    shared: dict[tuple[int, ...], list[int]] = {}
    for i, (context, _) in enumerate(pairs):
        shared.setdefault(tuple(context), []).append(i)
    out = [(0.0, True)] * len(pairs)
    longest = {context: max(len(pairs[i][1]) for i in own) for context, own in shared.items()}
    longest_first = sorted(shared, key=lambda context: (len(context), longest[context]), reverse=True)
    for contexts in _batches(longest_first, lambda some: len(some) <= rows and len(some) * len(some[0]) <= TOKENS):
        logits, state = _read(model, contexts)
        whole, best = log_sum(logits), logits.argmax(-1)
        row_of = {i: row for row, context in enumerate(contexts) for i in shared[context] if len(pairs[i][1])}
        for i, row in row_of.items():
            first = pairs[i][1][0]
            out[i] = float(logits[row, first] - whole[row]), bool(best[row] == first)
        rest = sorted((i for i in row_of if len(pairs[i][1]) > 1), key=lambda i: -len(pairs[i][1]))
        for part in _batches(rest, lambda some: _fits(model, rows, [pairs[i] for i in some])):
            scores = _continue(model, state.rows([row_of[i] for i in part]), [pairs[i][1] for i in part])
            for i, (score, greedy) in zip(part, scores, strict=True):
                out[i] = out[i][0] + score, out[i][1] and greedy
        on_pairs(sum(len(shared[context]) for context in contexts))
    return out


def _batches(items: Sequence[Item], fits: Callable[[list[Item]], bool]) -> Iterator[list[Item]]:
    """Consecutive items, as many at a time as fit together; one at least."""
    batch: list[Item] = []
    for item in items:
        if batch and not fits([*batch, item]):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _fits(model: Any, rows: int, pairs: Sequence[Pair]) -> bool:
    """Whether continuations can be read together; a limited context holds the longest of both, padding included.

    They come longest first; more than about a fifth of padding would cost more than another batch does.
    """
    context, continuation = (max(len(pair[part]) for pair in pairs) for part in (0, 1))
    limit = getattr(model, "context_limit", None)
    return (len(pairs) <= rows and len(pairs) * continuation <= TOKENS
            and len(pairs[-1][1]) >= 0.8 * continuation - 1
            and (limit is None or context + continuation - 1 <= limit))


def _read(model: Any, contexts: Sequence[Sequence[int]]) -> tuple[np.ndarray, Any]:
    """Logits (B, V) after contexts of any length, and the state there."""
    padding = np.array([len(contexts[0]) - len(c) for c in contexts], dtype=np.int64)
    tokens = np.zeros((len(contexts), len(contexts[0])), dtype=np.int64)
    for i, context in enumerate(contexts):
        tokens[i, padding[i] :] = context
    return next_logits(model, tokens, padded_state(model, padding) if padding.any() else None)


def _continue(model: Any, state: Any, continuations: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
    """Score of all tokens but the first of each continuation; the first is the next to be read."""
    width = max(len(c) for c in continuations) - 1
    ids = np.zeros((len(continuations), width + 1), dtype=np.int64)
    for i, continuation in enumerate(continuations):
        ids[i, : len(continuation)] = continuation
    nll, first, _ = token_scores(model, ids[:, :-1], ids[:, 1:], state)
    lengths = [len(c) - 1 for c in continuations]
    return [(-float(nll[i, :n].sum(dtype=np.float64)), bool(first[i, :n].all())) for i, n in enumerate(lengths)]


def token_scores(
    model: Any, tokens: np.ndarray, targets: np.ndarray, state: Any = None,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """Cross-entropy in nats of targets (B, T) after tokens (B, T), whether each is the likeliest token, the state."""
    if hasattr(model, "features"):
        from symboliclight.model import step

        return step.token_scores(model, tokens, targets, state)
    nll, first = np.empty(tokens.shape), np.empty(tokens.shape, bool)
    step_size = max(1, LOGITS // (len(tokens) * model.config.vocab_size))
    for at in range(0, tokens.shape[1], step_size):
        part = slice(at, at + step_size)
        logits, state = model(tokens[:, part], state)
        nll[:, part] = nats(logits, targets[:, part])
        first[:, part] = logits.argmax(-1) == targets[:, part]
    return nll, first, state


def nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Negative log-likelihood (B, T) of targets (B, T) under logits (B, T, V); float64."""
    return log_sum(logits) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
