"""What all benchmarks share: interleaved timing, rows, and the result file."""

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symboliclight.core.processor import Precision
from symboliclight.core.provenance import write_result

LABELS: dict[Precision, str] = {"bfloat16": "bf16", "float32": "float32"}  # a precision in the names of rows


@dataclass(frozen=True)
class Rounds:
    """Seconds of contenders that took turns: name -> one figure a round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Median seconds of one contender."""
        return statistics.median(self.seconds[name])

    def faster(self, name: str, other: str) -> float:
        """How many times as fast as `other` it is: the median of the ratios of single rounds.

        Steadier than a ratio of medians where a machine slows down for some of the rounds.
        """
        return statistics.median(b / a for a, b in zip(self.seconds[name], self.seconds[other], strict=True))

    def only(self, chosen: Sequence[bool]) -> "Rounds":
        """The rounds that are chosen."""
        return Rounds({name: [x for x, one in zip(each, chosen, strict=True) if one]
                       for name, each in self.seconds.items()})


def turns(contenders: dict[str, Callable[[], object]], rounds: int = 5, seconds: float = 60.0, twice: bool = False
          ) -> Rounds:
    """Let contenders take turns, so that a busy machine slows all of them alike.

    Each runs once unmeasured, then `rounds` times, fewer (but at least 3) once `seconds` are spent. With `twice` a turn
    is two runs and the second counts: threads that the one before left spinning, as OpenMP's do, sleep by then.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    begin = time.perf_counter()
    for done in range(rounds):
        for name, run in contenders.items():
            if twice:
                run()
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
        if done >= 2 and time.perf_counter() - begin > seconds:
            break
    return Rounds(taken)


def medians(contenders: dict[str, Callable[[], object]], rounds: int = 5, seconds: float = 60.0) -> dict[str, float]:
    """Median seconds of each contender; arguments as in `turns`."""
    found = turns(contenders, rounds, seconds)
    return {name: found.median(name) for name in contenders}


def row(
    name: str, unit: str, value: float, against: float, ratio: float, target: float | None = None
) -> dict[str, Any]:
    """One row of a result file; `ratio` is better when larger, `target` what was asked of it."""
    return {"name": name, "unit": unit, "value": _short(value), "against": _short(against), "ratio": _short(ratio),
            "target": target}


def write(name: str, rows: list[dict[str, Any]], directory: Path, **more: Any) -> Path:
    """Write results/bench-NAME.json; only a benchmark whose check has passed gets here."""
    path = directory / f"bench-{name}.json"
    write_result(path, {"check": "passed", **more, "rows": rows})
    return path


def peak_memory(reset: bool = False) -> int:
    """Peak resident bytes of this process; with `reset`, from now on (where Linux allows it)."""
    if reset:
        with contextlib.suppress(OSError):  # not Linux: the peak then includes what importing took
            Path("/proc/self/clear_refs").write_text("5")
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def _short(value: float) -> float:
    return float(f"{value:.4g}")
