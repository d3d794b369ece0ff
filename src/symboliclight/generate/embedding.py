"""A text as one vector: the mean of the stream over its tokens. The models here were not trained for it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

PIECE = 256  # tokens read at once, so that others can use the model in between


def embedding(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Mean (D,) float32 over `ids` of the stream that the head reads, scaled to length 1; a bos before them is read but
    does not count, so `ids` begin with it and hold at least one more.
    """
    total, state = np.zeros(model.config.d_model), None
    for start in range(0, len(ids), PIECE):
        rows, state = _stream(model, np.array([ids[start : start + PIECE]], np.int64), state)
        total += rows[0, not start:].sum(0, dtype=np.float64)
    length = float(np.linalg.norm(total))
    return (total / length if length else total).astype(np.float32)


def _stream(model: Any, tokens: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
    if not hasattr(model, "features"):
        rows, state = model.stream(tokens, state)
        return rows, state
    from symboliclight.model import step

    return step.stream(model, tokens, state)
