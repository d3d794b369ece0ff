"""Which units are silent, and where: exact spike counts per site.

A site is a place that spikes (`model.sites`); its silent fraction is the share of (token, unit) pairs without a spike.
Sites differ by construction, so there is no mean over sites here.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from torch import Tensor, nn

from symboliclight.model.sites import spike_sites


@dataclass
class SiteCount:
    """Integer counts of one site over everything read."""

    units: int = 0
    tokens: int = 0
    active: int = 0  # spikes
    open: int = 0  # tokens with at least one spike: what the one-bit gate of the next layer sees

    @property
    def silent(self) -> float:
        """Share of (token, unit) pairs without a spike."""
        return 1 - self.active / (self.tokens * self.units)


class SparsityMeter:
    """Counts the spikes of every forward pass made inside `with SparsityMeter(model) as meter`.

    `counts`: site -> totals. `take()`: site -> spikes of each token (B, T) int64 of the last pass, once.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sites = spike_sites(model)
        self._hooks: list[Any] = []
        self.counts: dict[str, SiteCount] = {}
        self._latest: dict[str, np.ndarray] = {}

    def __enter__(self) -> "SparsityMeter":
        def counter(name: str) -> Any:
            return lambda module, inputs, output: self._count(name, spikes_of(output))

        self._hooks = [site.register_forward_hook(counter(name)) for name, site in self._sites.items()]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def take(self) -> dict[str, np.ndarray]:
        """Spikes of each token in the last pass; empty if there was none since the last call."""
        latest, self._latest = self._latest, {}
        return latest

    def _count(self, name: str, spikes: Tensor) -> None:
        active = (spikes != 0).sum(-1).cpu().numpy()
        count = self.counts.setdefault(name, SiteCount(units=spikes.shape[-1]))
        count.tokens += active.size
        count.active += int(active.sum())
        count.open += int((active > 0).sum())
        self._latest[name] = active


def gate_sites(config: Any) -> dict[int, str]:
    """Layer -> the site whose spikes open its one-bit gate; empty where the configuration has no gate."""
    return {i: f"blocks.{i - 1}" if i else "encoder" for i in range(config.n_layers)} if config.gate else {}


def spikes_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
