"""What pairs and questions share: lines of JSON that know their place, samples, scores in order, intervals."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.measure.likelihood import Pair, loglikelihoods

AT_ONCE = 1024  # items scored before progress is told; Ctrl-C loses no more than these
Z = 1.959964  # of a 95% interval

Item = TypeVar("Item")
Score = tuple[float, bool]  # nats of a continuation, and whether greedy decoding would write it


def json_lines(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) of every line of a jsonl that is not blank. Raises `InputError` for any other line."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} is not JSON ({error}); give a jsonl file, one object a line") from error
        if not isinstance(row, dict):
            raise InputError(f"{where} is not a JSON object; give a jsonl file, one object a line")
        yield where, row


def text_of(row: dict[str, Any], field: str, where: str) -> str:
    """A field that must hold text. Raises `InputError` where it is missing, of another kind or empty."""
    if field not in row:
        raise InputError(f"{where} has no {field}, only {', '.join(row) or 'nothing'}; the layouts "
                         "that are read: docs/results/benchmarks.md")
    if not isinstance(row[field], str) or not row[field].strip():
        raise InputError(f"{where}: {field} is {'empty' if row[field] == '' else 'not text, or blank'}; "
                         "give it some text, or take the line out")
    return str(row[field])


def sampled(items: Sequence[Item], group: Callable[[Item], Any], limit: int | None) -> list[Item]:
    """At most `limit` items of each group, all in a random order that is always the same.

    So whatever part of it was scored is a fair sample of the whole.
    """
    taken: dict[Any, int] = {}
    out = []
    for i in np.random.default_rng(0).permutation(len(items)):
        key = group(items[i])
        taken[key] = taken.get(key, 0) + 1
        if limit is None or taken[key] <= limit:
            out.append(items[i])
    return out


def score_each(
    model: Any, items: Sequence[Item], choices: Callable[[Item], list[Pair]],
    on_items: Callable[[int], None] = lambda count: None,
) -> list[list[Score]]:
    """The score of every choice of each item, in order. After Ctrl-C those of the items that were done."""
    out: list[list[Score]] = []
    try:
        for at in range(0, len(items), AT_ONCE):
            groups = [choices(item) for item in items[at : at + AT_ONCE]]
            found = iter(loglikelihoods(model, [pair for pairs in groups for pair in pairs]))
            out += [[next(found) for _ in pairs] for pairs in groups]
            on_items(len(groups))
    except KeyboardInterrupt:
        pass
    return out


def accuracy(credits: Sequence[float]) -> dict[str, Any]:
    """Mean credit and its Wilson interval of 95%; credit is 1 for right, 0 for wrong, a share for a tie."""
    right, count = float(sum(credits)), len(credits)
    return {"count": count, "accuracy": right / count, "interval": wilson(right, count)}


def wilson(right: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of 95% for a share (JASA 22, 1927, p. 209)."""
    p, n = right / count, count
    centre, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + Z * Z / n)), min(1.0, (centre + half) / (1 + Z * Z / n))


def credit(scores: Sequence[float], answer: int) -> float:
    """1 if the answer alone scores best, 1/k if k choices do and it is among them, else 0."""
    best = max(scores)
    return 1 / sum(score == best for score in scores) if scores[answer] == best else 0.0
