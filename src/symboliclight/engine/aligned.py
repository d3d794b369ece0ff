"""Arrays that begin at a cache line, so that a vector of the runtime's is never in two lines, and share large pages."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from symboliclight.core.checkpoint import LINE


def allocated(shape: Sequence[int], dtype: Any, fill: Callable[..., np.ndarray] = np.empty) -> np.ndarray:
    """A new array that begins at a line; `fill` is `np.empty` or `np.zeros`."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = fill(size + LINE, np.uint8)
    first = -room.ctypes.data % LINE
    return room[first : first + size].view(dtype).reshape(shape)


def together(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Copies of the arrays that lie one behind the other, and so fill large pages, which numpy asks for.

    Read-only ones stay where they are: in a file that is mapped.
    """
    movable = {name: x for name, x in arrays.items() if x.flags.writeable}
    room, first, found = allocated((sum(_whole_lines(x) for x in movable.values()),), np.uint8), 0, dict(arrays)
    for name, x in movable.items():
        found[name] = room[first : first + x.nbytes].view(x.dtype).reshape(x.shape)
        found[name][...] = x
        first += _whole_lines(x)
    return found


def _whole_lines(array: np.ndarray) -> int:
    return -(-array.nbytes // LINE) * LINE


def lined(array: np.ndarray) -> np.ndarray:
    """A contiguous copy of `array` that begins at a line."""
    out = allocated(array.shape, array.dtype)
    out[...] = array
    return out
