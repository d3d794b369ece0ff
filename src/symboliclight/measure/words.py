"""Perplexity per word of a tokenised corpus, as WikiText (arXiv 1609.07843) and Penn Treebank define it.

A corpus of W words between white space and E line ends counts W + E tokens: every line end is an <eos>, and <unk> is a
word like any other. A model that reads pieces of words predicts the same text, so the perplexity is
exp(nats of all its pieces / (W + E)): what the text costs is divided by what the corpus counts, not by the pieces.
Other spellings of the text in pieces are not summed over; that could only lower the figure. Bytes are the file's.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.measure.likelihood import TOKENS, token_scores

ROWS = 32  # windows read at once
CHUNK = 1024  # tokens of the one stream read at once

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, bool]  # ids, targets, where these lie; does the state go on?


def measure(
    model: Any, tokenizer: Tokenizer, text: str, name: str, window: int | None = None,
    on_tokens: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Figures with the state carried from the first token to the last, and in windows that start without memory.

    window: tokens; None: none, but for a model with a limited context, which can carry nothing. `on_tokens` is told the
    tokens predicted. After Ctrl-C the figures are those of the lines that were done, and "partial".
    """
    ids = encoded(tokenizer, text, name)
    limit: int | None = getattr(model, "context_limit", None)
    if window is not None and limit is not None and window > limit:
        raise InputError(f"this model reads at most {limit} tokens, so --windows may not be {window}; give fewer")
    window = window or limit
    ways = {"carried": _stream(ids)} if limit is None else {}
    if window is not None:
        ways["windows"] = _windows(ids, window)
    found: dict[str, Any] = {"words": len(text.split()), "line_ends": text.count("\n"), "bytes": len(text.encode()),
                             "pieces": len(ids) - 1, "window": window, "partial": False}
    for way, batches in ways.items():
        nll, done = np.full(len(ids) - 1, np.nan), 0
        try:
            for targets, own in _score(model, batches):
                nll[targets] = own
                done += targets.size
                on_tokens(targets.size)
        except KeyboardInterrupt:
            found["partial"] = True
        found[way] = figures(text, float(nll.sum())) if done == len(nll) else _lines_done(tokenizer, ids, nll[:done])
        if found["partial"]:
            break
    return found


def encoded(tokenizer: Tokenizer, text: str, name: str) -> list[int]:
    """The text in pieces after the bos. Raises `InputError` where it has no word or the pieces lose some of it."""
    if not text.split():
        raise InputError(f"{name} has no words; give a corpus in plain text, such as wiki.test.tokens")
    ids = tokenizer.encode(text, bos=True)
    if not tokenizer.exact and tokenizer.decode(ids[1:]) != text:
        raise InputError(f"{name}: the model's tokenizer changes this text, so what it costs is not known; take a "
                         "model whose tokenizer keeps every character, such as one of `symboliclight tokenizer`")
    return ids


def figures(text: str, nats: float) -> dict[str, Any]:
    """What a text costs that was predicted with so many nats."""
    words, ends, size = len(text.split()), text.count("\n"), len(text.encode())
    return {"tokens": words + ends, "nats": nats, "perplexity": math.exp(nats / (words + ends)),
            "word_perplexity": math.exp(nats / words), "bits_per_byte": nats / math.log(2) / size}


def _lines_done(tokenizer: Tokenizer, ids: list[int], nll: np.ndarray) -> dict[str, Any]:
    """Figures of the whole lines among the first tokens, of which the nats are known."""
    read = tokenizer.decode(ids[1 : 1 + len(nll)])
    lines = read[: read.rfind("\n") + 1]
    if not lines.split():
        raise InputError("not one line was read before Ctrl-C; wait longer")
    ends = np.cumsum(tokenizer.piece_bytes[ids[1 : 1 + len(nll)]])
    pieces = int(np.searchsorted(ends, len(lines.encode()))) + 1
    return figures(lines, float(nll[:pieces].sum()))


def _stream(ids: list[int]) -> Iterator[Batch]:
    """The text as one sequence."""
    whole = np.array(ids, dtype=np.int64)
    for at in range(0, len(ids) - 1, CHUNK):
        targets = np.arange(at, min(at + CHUNK, len(ids) - 1))
        yield whole[targets][None], whole[targets + 1][None], targets[None], at > 0


def _windows(ids: list[int], window: int) -> Iterator[Batch]:
    """The text cut every `window` tokens; each predicts as many, the first of them from the token before."""
    whole = np.array(ids, dtype=np.int64)
    count = (len(ids) - 1) // window
    rows = max(1, min(ROWS, TOKENS // window))
    places = [np.arange(at * window, min(at + rows, count) * window).reshape(-1, window)
              for at in range(0, count, rows)]
    if len(ids) - 1 > count * window:
        places.append(np.arange(count * window, len(ids) - 1)[None])
    for at in places:
        yield whole[at], whole[at + 1], at, False


def _score(model: Any, batches: Iterator[Batch]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Where targets lie, and their nats, in float64."""
    state = None
    for tokens, targets, places, goes_on in batches:
        nll, _, state = token_scores(model, tokens, targets, state if goes_on else None)
        yield places, nll.astype(np.float64)
