"""How fast memory delivers: what decoding is measured against."""

from collections.abc import Callable
from typing import Any

import torch

from symboliclight.benchmarks.harness import row, turns

REPEATS = 8  # of a sum in one measurement, which then takes about as long as one of decoding


def reading(floats: int = 100_000_000) -> tuple[Callable[[], object], float]:
    """A call that reads memory for as long as a measurement of tokens takes, and how many bytes it reads."""
    x = torch.ones(floats)
    return lambda: [x.sum() for _ in range(REPEATS)], float(REPEATS * x.nbytes)


def rows() -> list[dict[str, Any]]:
    """What memory delivers, and the same 100 MB again and again: what the last cache keeps of 8- and 4-bit weights."""
    (large, size), (small, part) = reading(), reading(25_000_000)
    found = turns({"large": large, "small": small}, rounds=15, twice=True)
    rates = {"large": size / found.median("large") / 1e9, "small": part / found.median("small") / 1e9}
    return [row("memory read by torch.sum", "GB/s", rates["large"], rates["large"], 1.0),
            row("the same 100 MB read again and again by torch.sum, against 400 MB", "GB/s", rates["small"],
                rates["large"], found.faster("small", "large") * part / size)]
