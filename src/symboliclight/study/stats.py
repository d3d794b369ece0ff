"""The statistics of a study: pure functions of numbers, checked against values computed by hand.

An interval is that of Student's t at 95%. Two of them are used. `paired` looks at the differences of one comparison
alone: n pairs, n - 1 degrees of freedom. `pooled` takes the spread from a whole table of models x seeds, of which every
comparison is a part: with two seeds a single comparison has one degree of freedom and can decide almost nothing, while
the table has (models - 1)(seeds - 1). It assumes that runs of all its models scatter alike (a two-way analysis of
variance without interaction).
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n values; the deviation of one value is unknown."""

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """A mean difference; `half` is half the width of its 95% interval, `p` of the two-sided test against 0."""

    n: int  # pairs
    mean: float
    sd: float | None  # of the differences
    half: float | None  # None: one pair has no interval
    p: float | None
    freedom: float = 0

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation (n - 1 in the denominator)."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(len(values), float(np.mean(values)), sd)


def paired(ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float]) -> Difference | None:
    """Ours - theirs over the keys that both have; None if there are none."""
    keys = [key for key in ours if key in theirs]
    return against_zero([ours[key] - theirs[key] for key in keys]) if keys else None


def against_zero(differences: Sequence[float]) -> Difference:
    """Student's t of the mean of `differences` against 0."""
    s = spread(differences)
    if s.sd is None:
        return Difference(s.n, s.mean, None, None, None)
    return _difference(s.n, s.mean, s.sd, s.sd / math.sqrt(s.n), s.n - 1)


def unpaired(ours: Sequence[float], theirs: Sequence[float]) -> Difference | None:
    """Ours - theirs of runs that share no seed, by Welch's t; None unless both have two values."""
    a, b = spread(ours), spread(theirs)
    if a.sd is None or b.sd is None:
        return None
    errors = [a.sd**2 / a.n, b.sd**2 / b.n]
    squares = errors[0] ** 2 / (a.n - 1) + errors[1] ** 2 / (b.n - 1)
    freedom = sum(errors) ** 2 / squares if squares else a.n + b.n - 2
    sd = math.sqrt(a.sd**2 + b.sd**2)
    return _difference(min(a.n, b.n), a.mean - b.mean, sd, math.sqrt(sum(errors)), freedom)


def pooled(table: Mapping[str, Mapping[Hashable, float]], ours: str, theirs: str) -> Difference | None:
    """Ours - theirs, both rows of `table` (model -> seed -> value), with the spread of the whole table.

    Only models that have every seed of `ours` take part. None if there is nothing to pair, or fewer than two seeds.
    """
    seeds = [seed for seed in table.get(ours, {}) if seed in table.get(theirs, {})]
    rows = np.array([[row[seed] for seed in seeds] for row in table.values() if all(seed in row for seed in seeds)])
    if not seeds:
        return None
    mean = float(np.mean([table[ours][seed] - table[theirs][seed] for seed in seeds]))
    freedom = (len(rows) - 1) * (len(seeds) - 1)
    if freedom < 1:
        return Difference(len(seeds), mean, None, None, None)
    left = rows - rows.mean(1, keepdims=True) - rows.mean(0, keepdims=True) + rows.mean()
    sd = math.sqrt(2 * float((left**2).sum()) / freedom)  # of a difference of two runs of one seed
    return _difference(len(seeds), mean, sd, sd / math.sqrt(len(seeds)), freedom)


def _difference(n: int, mean: float, sd: float, error: float, freedom: float) -> Difference:
    from scipy.stats import t  # a second to import, and only reports need it

    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    p = float(2 * t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return Difference(n, mean, sd, half, p, freedom)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of y over x; needs two different x."""
    x, y = np.array(points, dtype=float).T
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


Verdict = Literal["yes", "no", "undecided"]


def reproduces(difference: Difference | None) -> Verdict:
    """Whether "better - worse" is below 0: yes or no if the interval leaves 0 out, undecided if not."""
    if difference is None or difference.half is None:
        return "undecided"
    if difference.mean + difference.half < 0:
        return "yes"
    return "no" if difference.mean - difference.half > 0 else "undecided"
