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
        self._shown = {name: chosen(units) for name, units in sites(c) if name.split(".")[0] in DRAWN}
        products = [m for m in model.weights.matrices if "." not in m.site and m.site != "embedding"]  # no sketches
        sizes = [m.data.nbytes + (0 if m.scale is None else m.scale.nbytes) for m in products]
        self._fed = [(_feeds(m.site, m.layer), m.ins, m.outs, size)
                     for m, size in zip(products, sizes, strict=True) if m.by_input]
        self._steady = sum(m.outs * m.ins for m in products if not m.by_input)
        self._key = c.n_heads * key_bytes(c, model.keys)

    def layout(self) -> dict[str, Any]:
        """Sites in the order of `silent`; `fired` has a bit for each of the `shown` units of each site."""
        return {"sites": [{"name": name, "units": units, "shown": len(self._shown.get(name, ()))}
                          for name, units in sites(self._config)]}

    def advance(self, slots: Any, tokens: np.ndarray, top: int,
                rows: Sequence[int]) -> tuple[np.ndarray, dict[int, dict[str, Any]]]:
        """Read one token (B, 1) of every text in `slots`; logits (B, V), and row -> what is told, for each of `rows`.

        silent: share by site; fired: base64 of bits, the highest first; bytes, operations: of this token, and twin_...
        Operations are sums and products of the matrices and of the attention. What is known of the whole call alone,
        keys that are seen and sketches, counts for its rows alike.
        """
        before = self._totals()
        logits, spikes = slots.trace(self._model, tokens, top)
        read, whole, attention = (self._totals() - before) / len(tokens)
        active = {name: found[:, 0].sum(-1) for name, found in spikes.items()}  # (B,) each
        read = read + sum(size / ins * (active[name] - active[name].mean()) for name, ins, _, size in self._fed)
        keys = attention * self._config.d_model / self._key  # a sum and a product for each number of a key and a value
        met = self._steady + keys + sum(outs * active[name] for name, _, outs, _ in self._fed)
        most = self._steady + keys + sum(outs * ins for _, ins, outs, _ in self._fed)
        read, met = (np.broadcast_to(x, len(tokens)) for x in (read, met))
        return logits, {row: {
            "silent": [round(1 - int(active[name][row]) / found.shape[-1], 4) for name, found in spikes.items()],
            "fired": self._bits({name: found[row, 0] for name, found in spikes.items()}),
            "bytes": round(read[row]), "twin_bytes": round(whole),
            "operations": round(met[row]), "twin_operations": round(most)} for row in rows}

    def _bits(self, spikes: Mapping[str, np.ndarray]) -> str:
        bits = [spikes[name][units] for name, units in self._shown.items()]
        return base64.b64encode(np.packbits(np.concatenate(bits or [np.zeros(0, bool)])).tobytes()).decode()

    def _totals(self) -> np.ndarray:
        """Bytes so far: read, of the twin, and of keys and values."""
        stats = self._model.stats()
        each = sum(stats["bytes"].values()), sum(stats["whole"].values()), stats["bytes"]["attention"]
        return np.array(each) * stats["tokens"]


def _feeds(site: str, layer: int) -> str:
    """The spike site that a matrix reads."""
    if site in ("up", "down"):
        return f"{'mixer' if site == 'up' else 'ffn'}.{layer}"
    return f"blocks.{layer - 1}" if layer else "encoder"
