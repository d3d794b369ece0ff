"""Arrays that begin at a cache line, so that a vector of the runtime's is never in two lines."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from symboliclight.checkpoint import LINE


def allocated(shape: Sequence[int], dtype: Any, fill: Callable[..., np.ndarray] = np.empty) -> np.ndarray:
    """A new array that begins at a line; `fill` is `np.empty` or `np.zeros`."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = fill(size + LINE, np.uint8)
    first = -room.ctypes.data % LINE
    return room[first : first + size].view(dtype).reshape(shape)


def lined(array: np.ndarray) -> np.ndarray:
    """A contiguous copy of `array` that begins at a line."""
    out = allocated(array.shape, array.dtype)
    out[...] = array
    return out
