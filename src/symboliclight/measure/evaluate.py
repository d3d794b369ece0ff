"""Perplexity, bits per byte and sparsity, per domain, language and position.

Every figure is a quotient of sums (`Tally`); `figures` is the one pure function that takes it.

- nats_per_token: mean cross-entropy of all target tokens; perplexity = exp of it.
- bits_per_byte: cross-entropy of all target tokens / ln 2 / the UTF-8 bytes that they stand for; it compares across
  tokenizers. Ends of documents have no bytes but must be predicted too, so their cost is in it.
- language of a token: zh if it holds (part of) a Han character, else en if it holds a letter a-z, else other (digits,
  punctuation, spaces, ends of documents). Losses go by the predicted token, sparsity by the token read.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from symboliclight.core.config import to_dict
from symboliclight.core.errors import InputError
from symboliclight.core.provenance import commit
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.data.batches import eval_windows
from symboliclight.data.shards import Shards
from symboliclight.measure.sparsity import SparsityMeter, gate_sites
from symboliclight.model.step import token_nll

LANGUAGES = ("zh", "en", "other")
BATCH_TOKENS = 8192  # tokens evaluated at once

Windows = Iterable[tuple[np.ndarray, np.ndarray]]  # (tokens, targets), each (B, T) int64


def _by_language() -> np.ndarray:
    return np.zeros(len(LANGUAGES))


@dataclass
class Tally:
    """Sums over the tokens of one domain. L languages, P positions of the window."""

    tokens: np.ndarray = field(default_factory=_by_language)  # (L,) targets
    nats: np.ndarray = field(default_factory=_by_language)  # (L,)
    bytes: np.ndarray = field(default_factory=_by_language)  # (L,) UTF-8
    active: dict[str, np.ndarray] = field(default_factory=dict)  # site -> (L, P) spikes
    seen: dict[str, np.ndarray] = field(default_factory=dict)  # site -> (L, P) tokens read, times units
    open: dict[str, int] = field(default_factory=dict)  # site -> tokens with at least one spike
    read: dict[str, int] = field(default_factory=dict)  # site -> tokens

    def add_loss(self, nll: np.ndarray, sizes: np.ndarray, language: np.ndarray) -> None:
        """Cross-entropy nll, UTF-8 bytes and language of target tokens, all of one shape."""
        for sums, weights in ((self.tokens, np.ones_like(nll)), (self.nats, nll), (self.bytes, sizes)):
            sums += np.bincount(language.ravel(), weights.ravel(), minlength=len(LANGUAGES))

    def add_spikes(self, site: str, active: np.ndarray, units: int, language: np.ndarray, positions: int) -> None:
        """Spikes and language of tokens read, (B, T) with T <= positions."""
        shape = (len(LANGUAGES), positions)
        cell = (language.astype(np.int64) * positions + np.arange(active.shape[1])).ravel()
        spikes = np.bincount(cell, active.ravel(), minlength=math.prod(shape)).reshape(shape)
        seen = np.bincount(cell, minlength=math.prod(shape)).reshape(shape) * float(units)
        self.active[site] = self.active.get(site, 0) + spikes
        self.seen[site] = self.seen.get(site, 0) + seen
        self.open[site] = self.open.get(site, 0) + int((active > 0).sum())
        self.read[site] = self.read.get(site, 0) + active.size


def total(tallies: Iterable[Tally]) -> Tally:
    """The sum of several domains."""
    out = Tally()
    for one in tallies:
        for name in ("tokens", "nats", "bytes"):
            getattr(out, name)[:] += getattr(one, name)
        for name in ("active", "seen", "open", "read"):
            sums = getattr(out, name)
            for site, value in getattr(one, name).items():
                sums[site] = sums.get(site, 0) + value
    return out


def figures(domains: Mapping[str, Tally], gates: Mapping[int, str]) -> dict[str, Any]:
    """All reported figures from the sums of each domain; `gates`: layer -> the site that opens its gate.

    "mean": token_weighted takes all tokens as one text; unweighted is the arithmetic mean of the domains' figures.
    """
    whole = total(domains.values())
    each = {name: _loss(tally) for name, tally in domains.items()}
    keys = ("nats_per_token", "perplexity", "bits_per_byte")
    unweighted = {key: _mean([figures[key] for figures in each.values()]) for key in keys}
    return {
        "domains": each,
        "languages": {name: _loss(whole, i) for i, name in enumerate(LANGUAGES) if whole.tokens[i]},
        "mean": {"token_weighted": _loss(whole), "unweighted": unweighted},
        "sparsity": {
            "sites": _silent(whole),
            "domains": {name: _silent(tally) for name, tally in domains.items()},
            "languages": {name: silent for i, name in enumerate(LANGUAGES) if (silent := _silent(whole, i))},
            "positions": _by_position(whole),
            "gate_open": {str(i): whole.open[s] / whole.read[s] for i, s in gates.items() if s in whole.open},
            "counts": {site: {"active": int(whole.active[site].sum()), "total": int(whole.seen[site].sum())}
                       for site in whole.active},
        },
    }


def _loss(tally: Tally, language: int | slice = slice(None)) -> dict[str, Any]:
    tokens, nats, size = (float(x[language].sum()) for x in (tally.tokens, tally.nats, tally.bytes))
    return {
        "tokens": int(tokens), "bytes": int(size), "nats_per_token": nats / tokens,
        "perplexity": math.exp(nats / tokens), "bits_per_byte": nats / math.log(2) / size if size else None,
        "bytes_per_token": size / tokens,
    }


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _silent(tally: Tally, language: int | slice = slice(None), position: slice = slice(None)) -> dict[str, float]:
    """Site -> silent fraction among the chosen tokens; sites that saw none of them are left out."""
    out = {}
    for site, active in tally.active.items():
        seen = tally.seen[site][language, position].sum()
        if seen:
            out[site] = float(1 - active[language, position].sum() / seen)
    return out


def _by_position(tally: Tally) -> list[dict[str, Any]]:
    """Silent fractions in buckets [from, to) of the position: 0, 1, 2-3, 4-7, 8-15, ..."""
    length = max((active.shape[1] for active in tally.active.values()), default=0)
    out, start, end = [], 0, 1
    while start < length:
        out.append({"from": start, "to": min(end, length), "sites": _silent(tally, position=slice(start, end))})
        start, end = end, 2 * end
    return out


class Languages:
    """Tells the language of tokens from their bytes; a character spelt in byte pieces counts as what it is."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._pieces = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
        self._kind = np.full(256, LANGUAGES.index("other"), dtype=np.int64)
        for first, last, language in ((0x41, 0x5A, "en"), (0x61, 0x7A, "en"), (0xE4, 0xE9, "zh")):
            self._kind[first : last + 1] = LANGUAGES.index(language)  # E4-E9: U+4000 to U+9FFF

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """ids (B, T) -> index into `LANGUAGES` (B, T) int64."""
        return np.stack([self._row(row) for row in ids])

    def _row(self, ids: np.ndarray) -> np.ndarray:
        pieces = [self._pieces[i] for i in ids]
        data = np.frombuffer(b"".join(pieces), dtype=np.uint8)
        at = np.arange(len(data))
        lead = np.maximum.accumulate(np.where(data & 0xC0 != 0x80, at, 0))  # first byte of the character
        owner = np.repeat(np.arange(len(ids)), [len(p) for p in pieces])
        out = np.full(len(ids), LANGUAGES.index("other"))
        np.minimum.at(out, owner, self._kind[data[lead]])  # zh before en before other
        return out


def evaluate(
    model: Any, tokenizer: Tokenizer, shards: Shards, split: str = "validation", max_tokens: int = 65_536,
    seq_len: int | None = None, on_tokens: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Evaluate on at most `max_tokens` tokens of each domain, in fixed windows of `seq_len` (default: the model's).

    Windows start without a state. Nothing is random. `on_tokens` is told the tokens done. Raises `InputError` if the
    shards were made with another tokenizer or the model has too small a vocabulary.
    """
    shards.require(tokenizer)
    length = seq_len or model.config.max_seq_len
    batch = max(1, BATCH_TOKENS // length)
    domains = {name: eval_windows(shards, split, name, length, max_tokens, batch) for name in shards.domains(split)}
    result = _evaluate(model, tokenizer, domains, length, on_tokens)
    about = {"split": split, "seq_len": length, "max_tokens": max_tokens, "data_hash": shards.data_hash}
    return {**about, **_provenance(model, tokenizer), **result}


def evaluate_text(
    model: Any, tokenizer: Tokenizer, text: str, seq_len: int | None = None,
    on_tokens: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Evaluate on one text, as the domain "text": bos first, every token predicted once, windows without a state."""
    ids = np.array(tokenizer.encode(text, bos=True), dtype=np.int64)
    if len(ids) < 2:
        raise InputError("the text to evaluate is empty; give one with at least a character")
    length = seq_len or model.config.max_seq_len
    windows = [(ids[None, s : s + length][:, : len(ids) - 1 - s], ids[None, s + 1 : s + 1 + length])
               for s in range(0, len(ids) - 1, length)]
    result = _evaluate(model, tokenizer, {"text": windows}, length, on_tokens)
    return {"seq_len": length, **_provenance(model, tokenizer), **result}


def _evaluate(
    model: Any, tokenizer: Tokenizer, domains: Mapping[str, Windows], length: int, on_tokens: Callable[[int], None],
) -> dict[str, Any]:
    if tokenizer.vocab_size > model.config.vocab_size:
        raise InputError(f"the tokenizer has {tokenizer.vocab_size} pieces, the model only {model.config.vocab_size}; "
                         "use the tokenizer.model that the model was trained with")
    languages, tallies = Languages(tokenizer), {name: Tally() for name in domains}
    with SparsityMeter(model) as meter:
        for name, windows in domains.items():
            for tokens, targets in windows:
                nll = token_nll(model, tokens, targets).astype(np.float64)
                language = languages(np.concatenate([tokens, targets[:, -1:]], 1))
                tallies[name].add_loss(nll, tokenizer.piece_bytes[targets], language[:, 1:])
                for site, active in meter.take().items():
                    tallies[name].add_spikes(site, active, meter.counts[site].units, language[:, :-1], length)
                on_tokens(targets.size)
    return figures(tallies, gate_sites(model.config))


def _provenance(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"tokenizer_hash": tokenizer.hash, "config": to_dict(model.config), "commit": commit(),
            "parameters": sum(p.numel() for p in model.parameters())}
