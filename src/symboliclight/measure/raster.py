"""Which units are silent when: every spike of a single text, and its picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from torch import nn

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.measure.sparsity import spikes_of
from symboliclight.model.sites import spike_sites
from symboliclight.model.step import token_nll

SITES = {"encoder": ("#0072B2", "encoder"), "ffn": ("#D55E00", "FFN hidden units"),
         "blocks": ("#009E73", "block output"), "mixer": ("#CC79A7", "mixer output")}
# kind of spike site -> colour (Okabe-Ito), label


@dataclass(frozen=True)
class Raster:
    """Spikes of one text: site -> (T, units) bool, and a label for each of its T tokens."""

    labels: list[str]
    spikes: dict[str, np.ndarray]

    def rates(self) -> dict[str, float]:
        """Spikes per unit and token of each site."""
        return {name: float(s.mean()) for name, s in self.spikes.items()}

    def stack(self, kind: str) -> np.ndarray:
        """All layers of a kind of site, "encoder", "ffn" or "blocks": (layers, T, units) bool; an encoder has one."""
        found = [s for name, s in self.spikes.items() if name.split(".")[0] == kind]
        if not found:
            raise InputError(f"no spike site of kind {kind!r}; choose from: {', '.join(self.spikes)}")
        return np.stack(found)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return raster_svg(self)


def raster(model: nn.Module, tokenizer: Tokenizer, text: str) -> Raster:
    """Record every spike while `model` reads bos and `text`. Raises `InputError` for a model that does not spike."""
    sites, seen = spike_sites(model), {}
    if not sites:
        raise InputError("this model has no spikes to draw; use one of the symboliclight family")

    def recorder(name: str) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[name] = (spikes_of(output)[0] != 0).cpu().numpy()
        return record

    hooks = [site.register_forward_hook(recorder(name)) for name, site in sites.items()]
    ids = tokenizer.encode(text, bos=True)
    tokens = np.array([ids], dtype=np.int64)
    try:
        token_nll(model, tokens, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return Raster(_labels(tokenizer, ids), {name: seen[name] for name in sites if name in seen})


def _labels(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Text of each token; a character made of several tokens stands at the last of them."""
    stream, names = tokenizer.stream(), {tokenizer.bos_id: "‹start›", tokenizer.eos_id: "‹end›"}
    labels = []
    for i in ids:
        text = stream.push(i)
        shown = text.strip() or {"\n": "⏎", "\t": "⇥"}.get(text[:1], "␣" if text else "·")
        labels.append(names.get(i, shown))
    return labels


_CELL, _DOT, _LEFT, _GAP = 18, 2, 132, 14  # pixels: token width, unit height, label column, space between panels


def raster_svg(spikes: Raster, sites: Sequence[str] | None = None, units: int = 48) -> str:
    """One SVG with a panel a site, time to the right, `units` evenly chosen units downwards.

    `sites` defaults to the encoder and the block outputs. Text is left to the reader's fonts, so Chinese needs none
    of ours; ink takes the colour of the surrounding page.
    """
    names = [n for n in spikes.spikes if not n.startswith("ffn.")] if sites is None else list(sites)
    unknown = [n for n in names if n not in spikes.spikes]
    if unknown or not names:
        raise InputError(f"no spike site {', '.join(unknown) or 'chosen'}; choose from: {', '.join(spikes.spikes)}")
    panels, y = [], 8
    for name in names:
        panel, height = _panel(name, spikes.spikes[name], units, y)
        panels.append(panel)
        y += height + _GAP
    labels = "".join(
        f'<text transform="translate({_LEFT + _CELL * i + _CELL * 0.7:.1f} {y}) rotate(-55)" text-anchor="end">'
        f"{escape(label)}</text>" for i, label in enumerate(spikes.labels))
    width = _LEFT + _CELL * len(spikes.labels) + 8
    height = y + round(max(_width(label) for label in spikes.labels) * 0.82) + 16
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="Spike raster of {len(spikes.labels)} tokens" font-family="system-ui, sans-serif" '
            f'font-size="12" fill="currentColor">{"".join(panels)}{labels}</svg>')


def _panel(name: str, spikes: np.ndarray, units: int, y: int) -> tuple[str, int]:
    """Frame, label and dots of one site at height y, and its height in pixels."""
    T, total = spikes.shape
    shown = np.unique(np.linspace(0, total - 1, min(units, total)).round().astype(int))
    dots = "".join(f"M{_LEFT + _CELL * t + 1} {y + _DOT * u}h{_CELL - 2}v{_DOT}h{2 - _CELL}z"
                   for t, u in zip(*np.nonzero(spikes[:, shown]), strict=True))
    height = _DOT * len(shown)
    middle = y + height // 2
    colour, _ = SITES[name.split(".")[0]]
    return (f'<rect x="{_LEFT}" y="{y}" width="{_CELL * T}" height="{height}" fill="none" stroke="currentColor" '
            f'stroke-opacity=".25"/><path d="{dots}" fill="{colour}"/>'
            f'<text x="{_LEFT - 10}" y="{middle - 3}" text-anchor="end" font-weight="600">{escape(name)}</text>'
            f'<text x="{_LEFT - 10}" y="{middle + 12}" text-anchor="end" fill-opacity=".7">'
            f"{1 - spikes.mean():.1%} silent</text>"), height


def _width(label: str) -> float:
    """About how many pixels a label takes at font size 12."""
    return sum(12 if ord(c) > 0x2E80 else 7 for c in label)
