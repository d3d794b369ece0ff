"""What was read before: a prompt that begins with a text of this memory goes on from there.

The state of a sequence has one size, whatever its length, so a text of any length costs the same to keep.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np


class Memory:
    """Token ids -> the state of a model after them, up to `limit` bytes; those used longest ago go first."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._states: OrderedDict[bytes, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    @property
    def nbytes(self) -> int:
        """Bytes of all states and their ids."""
        return self._size

    def keep(self, ids: Sequence[int] | np.ndarray, state: Any) -> None:
        """Remember the state of one sequence after `ids`; nobody else may advance it afterwards."""
        key = _key(ids)
        if key in self._states or len(key) + state.nbytes > self._limit:
            return
        self._states[key] = state
        self._size += len(key) + state.nbytes
        while self._size > self._limit:
            old, dropped = self._states.popitem(last=False)
            self._size -= len(old) + dropped.nbytes

    def get(self, ids: Sequence[int] | np.ndarray) -> Any:
        """The state after exactly these ids, yours to advance; None if it is not remembered."""
        key = _key(ids)
        if key not in self._states:
            return None
        self._states.move_to_end(key)
        return self._states[key].copy()

    def find(self, ids: Sequence[int] | np.ndarray) -> tuple[Any, int]:
        """A state that has read the most of the beginning of `ids`, yours to advance, and how many it has read.

        (None, 0) if there is none.
        """
        whole = _key(ids)
        best = max((key for key in self._states if whole.startswith(key)), key=len, default=b"")
        if not best:
            return None, 0
        self._states.move_to_end(best)
        return self._states[best].copy(), len(best) // 4


def _key(ids: Sequence[int] | np.ndarray) -> bytes:
    return np.asarray(ids, np.int32).tobytes()
