"""How fast memory delivers, what decoding is measured against, and how near to each other threads run.

A virtual machine may move its processors between cores that share a last cache, and one way to memory, and cores that
do not. Then memory is faster and threads meet more slowly: rounds of either kind are also reported apart.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch

from symboliclight.benchmarks.harness import Rounds, row, turns
from symboliclight.engine.model import Engine

REPEATS = 8  # of a sum in one measurement, which then takes about as long as one of decoding
MEETINGS = 1000  # of threads in one measurement
MOVED = 2.5  # times as long: the threads have moved
NO_WAIT = MEETINGS * 20e-9  # seconds: less than threads on two cores take
FEW = 5  # rounds of a kind that are too few to report


def reading(floats: int = 100_000_000) -> tuple[Callable[[], object], float]:
    """A call that reads memory for as long as a measurement of tokens takes, and how many bytes it reads."""
    x = torch.ones(floats)
    return lambda: [x.sum() for _ in range(REPEATS)], float(REPEATS * x.nbytes)


def meeting(engine: Engine) -> Callable[[], object]:
    """A call in which the threads of `engine` wait for each other MEETINGS times."""
    return lambda: engine._native.meet(MEETINGS)


def placed(found: Rounds) -> dict[str, Rounds]:
    """Where threads were near to each other or far apart -> the rounds with a contender "meeting" in which they were.

    Empty if they did not move.
    """
    times = sorted(found.seconds["meeting"])
    near, far = (max(times[at], NO_WAIT) for at in (len(times) // 10, -len(times) // 10))
    between = (near * far) ** 0.5
    kinds = {"threads near": found.only([t < between for t in found.seconds["meeting"]]),
             "threads far apart": found.only([t >= between for t in found.seconds["meeting"]])}
    moved = far > MOVED * near and all(len(kind.seconds["meeting"]) >= FEW for kind in kinds.values())
    return kinds if moved else {}


def everywhere(found: Rounds, report: Callable[[Rounds], dict[str, Any]]) -> list[dict[str, Any]]:
    """The row of all rounds, and without a target those of the rounds where threads were near and where far apart."""
    rows = [report(found)]
    for place, part in placed(found).items():
        one = report(part)
        rows.append(one | {"name": f"{one['name']} ({place})", "target": None})
    return rows


def rows(engine: Engine) -> list[dict[str, Any]]:
    """What memory delivers, and the same 100 MB again and again: what the last cache keeps of 8- and 4-bit weights."""
    (large, size), (small, part) = reading(), reading(25_000_000)
    found = turns({"large": large, "small": small, "meeting": meeting(engine)}, rounds=31, twice=True)

    def delivered(r: Rounds) -> dict[str, Any]:
        rate = size / r.median("large") / 1e9
        return row("memory read by torch.sum", "GB/s", rate, rate, 1.0)

    def again(r: Rounds) -> dict[str, Any]:
        return row("the same 100 MB read again and again by torch.sum, against 400 MB", "GB/s",
                   part / r.median("small") / 1e9, size / r.median("large") / 1e9,
                   r.faster("small", "large") * part / size)

    def met(r: Rounds) -> dict[str, Any]:
        nanoseconds = 1e9 * statistics.median(r.seconds["meeting"]) / MEETINGS
        return row("threads wait for each other once", "ns", nanoseconds, nanoseconds, 1.0)

    return [one for report in (delivered, again, met) for one in everywhere(found, report)]
