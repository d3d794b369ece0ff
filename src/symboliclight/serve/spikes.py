"""Who spiked for each token that is written, and what the runtime read and computed for it, beside the dense twin.

The twin is the same model with no input silent: `stats()["whole"]` of the runtime. Bytes are those of one sequence by
itself, as in `stats`; texts that are written together share one reading of the weights.

Legend: B rows of a call.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from symboliclight.core.config import ModelConfig
from symboliclight.engine import Engine
from symboliclight.engine.state import key_bytes
from symboliclight.engine.weights import Matrix

UNITS = 48  # of a site, evenly chosen, whose spikes are told one by one
DRAWN = ("encoder", "blocks")  # kinds of site of which they are


def sites(c: ModelConfig) -> Iterator[tuple[str, int]]:
    """Name and units of each spike site, as `Engine.trace` names and orders them."""
    if c.spike_source != "dense":
        yield "encoder", c.d_model
    for i in range(c.n_layers):
        if c.spike_fed and c.block_spikes:
            yield f"mixer.{i}", c.d_model
        if c.ffn == "spike":
            yield f"ffn.{i}", c.d_ff
        if c.block_spikes:
            yield f"blocks.{i}", c.d_model


def told(model: Any) -> bool:
    """Whether spikes of a model can be told: it is the runtime's, and spikes."""
    return isinstance(model, Engine) and any(sites(model.config))


def chosen(units: int) -> np.ndarray:
    """Which units of a site are told, rising."""
    return np.unique(np.linspace(0, units - 1, min(UNITS, units)).round().astype(int))


def sent(value: Mapping[str, Any]) -> str:
    """A server-sent event of a type of its own, which clients that do not know it pass over."""
    return f"event: spikes\ndata: {json.dumps(value)}\n\n"


class Meter:
    """Advances texts by a token, and tells what happened for those that ask."""

    def __init__(self, model: Engine) -> None:
        c = self._config = model.config
        self._model = model
        self._units = dict(sites(c))
        self._shown = {name: chosen(units) for name, units in self._units.items() if name.split(".")[0] in DRAWN}
        self._key = 2 * key_bytes(c, model.keys) * c.n_heads * c.n_layers  # bytes of a key and its value, all layers
        self._weigh(model.weights.matrices)

    def _weigh(self, matrices: Sequence[Matrix]) -> None:
        """What a token reads and computes, whoever spikes, and for each active unit of a site."""
        size, outs = dict.fromkeys(self._units, 0.0), dict.fromkeys(self._units, 0)  # of what an active unit meets
        self._sketched = {m.site.removesuffix(".sketch") for m in matrices if m.site.endswith(".sketch")}
        self._read = self._twin = next(m.data[0].nbytes for m in matrices if m.site == "embedding")  # a row of it
        self._met = self._most = 0
        for m in (m for m in matrices if m.site != "embedding"):
            site, _, part = m.site.partition(".")
            product, read = 0 if part else m.outs * m.ins, m.data.nbytes + (0 if m.scale is None else m.scale.nbytes)
            self._most += product
            self._twin += read * (part != "sketch")
            if m.by_input:
                size[_feeds(site, m.layer)] += read / m.ins
                outs[_feeds(site, m.layer)] += m.outs
            else:
                self._met += product
                self._read += read * (site not in self._sketched or part not in ("", "sketch"))
        self._size, self._outs = np.array([*size.values()]), np.array([*outs.values()])

    def layout(self) -> dict[str, Any]:
        """Sites in the order of `silent`; `fired` has a bit for each of the `shown` units of each site."""
        return {"sites": [{"name": name, "units": units, "shown": len(self._shown.get(name, ()))}
                          for name, units in self._units.items()]}

    def advance(self, slots: Any, tokens: np.ndarray, top: int,
                rows: Sequence[int]) -> tuple[np.ndarray, dict[int, dict[str, Any]]]:
        """Read one token (B, 1) of every text in `slots`; logits (B, V), and row -> what is told, for each of `rows`.

        silent: share by site; fired: base64 of bits, the highest first; bytes, operations: of this token, and twin_...
        Operations are products of the matrices and of the attention, each with its sum. What is known of the whole call
        alone, keys that are seen and sketches, counts for its rows alike.
        """
        before = self._so_far()
        logits, spikes = slots.trace(self._model, tokens, top)
        seen, sketched = (self._so_far() - before) / len(tokens)
        active = np.stack([np.count_nonzero(spikes[name], (1, 2)) for name in self._units], 1)  # (B, sites)
        keys = seen * self._key
        read = self._read + sketched + keys + active @ self._size
        attention = seen * 2 * self._config.d_model * self._config.n_layers  # each number of key and value is met once
        met = self._met + attention + active @ self._outs
        return logits, {row: {
            "silent": [round(1 - n / units, 4)
                       for n, units in zip(active[row].tolist(), self._units.values(), strict=True)],
            "fired": self._bits(spikes, row), "bytes": round(read[row]), "twin_bytes": round(self._twin + keys),
            "operations": round(met[row]), "twin_operations": round(self._most + attention)} for row in rows}

    def _bits(self, spikes: Mapping[str, np.ndarray], row: int) -> str:
        bits = [spikes[name][row, 0, units] for name, units in self._shown.items()]
        return base64.b64encode(np.packbits(np.concatenate(bits or [np.zeros(0, bool)])).tobytes()).decode()

    def _so_far(self) -> np.ndarray:
        """Keys that were seen, and bytes of matrices that have a sketch, since loading."""
        if not self._sketched:  # most precisions: nothing to add up
            return np.array([self._model.keys_read, 0.0])
        stats = self._model.stats()
        read = sum(stats["bytes"][site] + stats["bytes"][f"{site}.sketch"] for site in self._sketched)
        return np.array([self._model.keys_read, read * stats["tokens"]])


def _feeds(site: str, layer: int) -> str:
    """The spike site that a matrix reads."""
    if site in ("up", "down"):
        return f"{'mixer' if site == 'up' else 'ffn'}.{layer}"
    return f"blocks.{layer - 1}" if layer else "encoder"
