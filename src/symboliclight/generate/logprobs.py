"""Log-probabilities of tokens as the model gives them: before temperature, penalties, filters and masked ids.

Legend: T tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.generate.distribution import DAMAGED, largest, log_sum


class Score(NamedTuple):
    """A token of a text, and what the model expected at its place; natural logarithms."""

    token: int
    logprob: float | None  # None: nothing stands before it
    top: tuple[tuple[int, float], ...] = ()  # the most likely ids, the likeliest first


def scores(logits: np.ndarray, tokens: Sequence[int] | np.ndarray, top: int) -> list[Score]:
    """log_softmax(logits)[token], and the `top` largest, for tokens (T,) after logits (T, V).

    Raises `InputError` where logits are not finite.
    """
    whole, found = log_sum(logits), []
    if not np.isfinite(whole).all():
        raise InputError(DAMAGED)
    for row, total, token in zip(logits, whole, tokens, strict=True):
        best = largest(row, min(top, len(row))) if top else ()
        found.append(Score(int(token), float(row[token] - total), tuple((int(i), float(row[i] - total)) for i in best)))
    return found


def every_logits(model: Any, tokens: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
    """Logits (T, V) after each of tokens (1, T), and the state; any model behind the seam."""
    if not hasattr(model, "features"):
        logits, state = model(tokens, state)
        return np.asarray(logits)[0], state
    from symboliclight.model.step import every_logits as of_torch

    return of_torch(model, tokens, state)
