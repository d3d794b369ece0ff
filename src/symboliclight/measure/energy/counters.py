"""Joules that the machine itself counts: RAPL (Intel and AMD processors, Linux powercap) and NVML (NVIDIA GPUs).

A counter covers the whole package or board, whoever uses it. Idle power, measured just before each repetition, is taken
off; what stays is the mean over repetitions with its standard deviation.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """A running energy counter. `read` gives joules; they begin again from 0 after `wraps_at` joules, if it does."""

    name: str
    read: Callable[[], float]
    wraps_at: float | None = None

    def since(self, before: float) -> float:
        """Joules since the reading `before`; at most one wrap lies between."""
        used = self.read() - before
        return used if used >= 0 or self.wraps_at is None else used + self.wraps_at


def rapl(root: Path = POWERCAP) -> tuple[list[Counter], str]:
    """Processor packages and their DRAM, and in one line why there are none.

    Subdomains of a package (core, uncore) are part of it and the platform domain (psys) holds everything, so neither is
    listed; DRAM is not part of its package.
    """
    zones = sorted(root.glob("intel-rapl:*")) if root.is_dir() else []
    if not zones:
        return [], f"no RAPL: {root} has no intel-rapl zone (a virtual machine, or a processor without it)"
    found = []
    for zone in zones:
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith(("package", "dram")):
                continue
            wraps_at = int((zone / "max_energy_range_uj").read_text()) / 1e6
            read = _reader(zone / "energy_uj")
            read()
        except PermissionError:
            return [], f"no RAPL: only root may read {zone}/energy_uj; run as root or make it readable"
        except (OSError, ValueError) as error:
            return [], f"no RAPL: {zone} cannot be read ({error})"
        found.append(Counter(f"{zone.name} {name}", read, wraps_at))
    return found, "" if found else f"no RAPL: {root} has no package zone"


def _reader(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6


def nvml() -> tuple[list[Counter], str]:
    """NVIDIA GPUs that count energy (Volta and later), and in one line why there are none; needs `pynvml`."""
    try:
        import pynvml
    except ImportError:
        return [], "no NVML: pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        found = [Counter(f"gpu:{i}", _gpu_reader(pynvml, h)) for i, h in enumerate(handles)]
        for counter in found:
            counter.read()
    except pynvml.NVMLError as error:
        return [], f"no NVML: {error}"
    return found, "" if found else "no NVML: no GPU"


def _gpu_reader(pynvml: Any, handle: Any) -> Callable[[], float]:
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3  # millijoules


def available(root: Path = POWERCAP) -> tuple[list[Counter], list[str]]:
    """All counters of this machine, and the reasons for those that are missing."""
    (cpu, why_cpu), (gpu, why_gpu) = rapl(root), nvml()
    return cpu + gpu, [why for why in (why_cpu, why_gpu) if why]


def measure(
    counters: list[Counter], work: Callable[[], int], seconds: float = 5.0, repeats: int = 5,
    clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    on_repeat: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Joules a token of `work`, which is called for `seconds` at a time and returns the tokens it did.

    Per counter and over all: mean and standard deviation over `repeats` >= 2, net of the idle power of as many seconds
    before each. A net figure that is smaller than its deviation says nothing.
    """
    def rest() -> int:
        sleep(seconds)
        return 0

    work()  # caches are warm, threads have started
    net: dict[str, list[float]] = {c.name: [] for c in counters}
    idle_watts: dict[str, list[float]] = {c.name: [] for c in counters}
    rates = []
    for _ in range(repeats):
        idle, idle_time, _ = _run(counters, rest, 0.0, clock)
        used, busy, tokens = _run(counters, work, seconds, clock)
        rates.append(tokens / busy)
        for name in net:
            idle_watts[name].append(idle[name] / idle_time)
            net[name].append((used[name] - idle_watts[name][-1] * busy) / tokens)
        on_repeat()
    total = [sum(values) for values in zip(*net.values(), strict=True)]
    return {
        "label": "measured", "repeats": repeats, "seconds": seconds, "tokens_per_second": statistics.mean(rates),
        "idle_watts": {name: statistics.mean(x) for name, x in idle_watts.items()},
        "joules_per_token": _spread(total), "by_counter": {name: _spread(x) for name, x in net.items()},
    }


def _run(
    counters: list[Counter], work: Callable[[], int], seconds: float, clock: Callable[[], float]
) -> tuple[dict[str, float], float, int]:
    """Joules by counter, seconds and tokens of `work` called until `seconds` are over, at least once."""
    before, start, tokens = {c.name: c.read() for c in counters}, clock(), 0
    while True:
        tokens += work()
        spent = clock() - start
        if spent >= seconds:
            return {c.name: c.since(before[c.name]) for c in counters}, spent, tokens


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values)}
