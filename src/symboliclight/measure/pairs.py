"""Minimal pairs: does a model find the grammatical sentence likelier than its twin?

The layouts of BLiMP (arXiv 1912.00582), ZhoBLiMP (arXiv 2411.06096) and SLING (arXiv 2210.11689) are told apart by
their fields. A pair is right if the good sentence has the larger log-likelihood, summed over its pieces after the bos;
a tie counts half. The harness puts a space before the sentences of its `blimp` tasks, none in `zhoblimp`; so here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.measure.items import accuracy, credit, json_lines, sampled, score_each, text_of
from symboliclight.measure.likelihood import Pair

GOOD, BAD = "sentence_good", "sentence_bad"
PHENOMENON = ("linguistics_term", "Phenomenon", "phenomenon")  # of BLiMP, of some and of most files of SLING


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences that differ in one point of grammar."""

    good: str
    bad: str
    paradigm: str
    phenomenon: str
    field: str  # of linguistics: syntax, morphology ...; empty where the layout has none
    before: str  # what stands between the bos and the sentence
    file: str
    where: str  # file:line


def parse(text: str, name: str) -> list[MinimalPair]:
    """The pairs of a jsonl file. Raises `InputError`, with the line, for one that is none, and for a file without any.

    The paradigm is the `UID` of a line or else, as in SLING, the file.
    """
    pairs = []
    for where, row in json_lines(text, name):
        good, bad = text_of(row, GOOD, where), text_of(row, BAD, where)
        phenomenon = next((str(row[key]) for key in PHENOMENON if row.get(key)), "")
        pairs.append(MinimalPair(good, bad, str(row.get("UID") or Path(name).stem), phenomenon,
                                 str(row.get("field") or ""), " " if "linguistics_term" in row else "", name, where))
    if not pairs:
        raise InputError(f"{name} holds no minimal pair; give a jsonl file with {GOOD} and {BAD} in each line")
    return pairs


def choices(tokenizer: Tokenizer, pair: MinimalPair) -> list[Pair]:
    """What tells the two sentences apart: the ids that they begin with alike, and the rest of each."""
    good, bad = (tokenizer.encode(pair.before + sentence, bos=True) for sentence in (pair.good, pair.bad))
    alike = next((i for i, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b), min(len(good), len(bad)))
    return [(good[:alike], good[alike:]), (bad[:alike], bad[alike:])]


def sample(pairs: Sequence[MinimalPair], limit: int | None = None) -> list[MinimalPair]:
    """At most `limit` pairs of each paradigm, in an order that is random and always the same."""
    return sampled(pairs, lambda pair: (pair.file, pair.paradigm), limit)


def measure(
    model: Any, tokenizer: Tokenizer, pairs: Sequence[MinimalPair],
    on_pairs: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Accuracy by paradigm, phenomenon and field; `on_pairs` is told the pairs done.

    After Ctrl-C the figures are of the pairs that were done, and "partial".
    """
    scores = score_each(model, pairs, lambda pair: choices(tokenizer, pair), on_pairs)
    credits = [credit([good, bad], 0) for (good, _), (bad, _) in scores]
    return {"partial": len(credits) < len(pairs), **figures(pairs[: len(credits)], credits)}


def figures(pairs: Sequence[MinimalPair], credits: Sequence[float]) -> dict[str, Any]:
    """All that is reported of scored pairs, rows in the order of their names."""
    if not pairs:
        raise InputError("not one minimal pair was scored; wait longer before Ctrl-C, or take a sample with --limit")
    rows = _grouped(pairs, credits, lambda pair: (pair.paradigm, pair.file))
    names = [paradigm for paradigm, _ in rows]
    paradigms = {}
    for (paradigm, file), (first, own) in rows.items():
        name = paradigm if names.count(paradigm) == 1 else f"{paradigm} ({file})"
        paradigms[name] = {"phenomenon": first.phenomenon, "field": first.field, "file": file, **accuracy(own)}
    groups = {key: {name: accuracy(own) for name, (_, own) in _grouped(pairs, credits, by).items() if name}
              for key, by in (("phenomena", lambda pair: pair.phenomenon), ("fields", lambda pair: pair.field))}
    mean = sum(row["accuracy"] for row in paradigms.values()) / len(paradigms)
    return {"all": accuracy(credits), "mean_over_paradigms": mean, "ties": sum(0 < own < 1 for own in credits),
            **groups, "paradigms": paradigms}


def _grouped(
    pairs: Sequence[MinimalPair], credits: Sequence[float], by: Callable[[MinimalPair], Any],
) -> dict[Any, tuple[MinimalPair, list[float]]]:
    """Key -> a pair of the group, and the credits of all of it."""
    groups: dict[Any, tuple[MinimalPair, list[float]]] = {}
    for pair, own in zip(pairs, credits, strict=True):
        groups.setdefault(by(pair), (pair, []))[1].append(own)
    return dict(sorted(groups.items()))
