"""Where a model spikes, by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, float32, nn

from symboliclight.model.encoder import Neuron, Spike
from symboliclight.model.lm import SymbolicLight


def spike_sites(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose output (first output, if several) is the spikes (B, T, units) of a site, in forward order.

    Names: `encoder`; for each layer i `mixer.i` (what the up-projection reads, with `spike_fed`), `ffn.i` (hidden
    units) and `blocks.i` (block output). A site that the configuration made dense is absent; a model without spikes
    has none.
    """
    if not isinstance(model, SymbolicLight):
        return {}
    sites: dict[str, nn.Module] = {} if model.config.spike_source == "dense" else {"encoder": model.encoder.neuron}
    for i, block in enumerate(model.blocks):
        found = {f"mixer.{i}": block.get_submodule("ffn.spike"), f"ffn.{i}": block.get_submodule("ffn.activation"),
                 f"blocks.{i}": block.get_submodule("spike")}
        sites |= {name: module for name, module in found.items() if isinstance(module, Spike)}
    return sites


def set_surrogate_alpha(model: nn.Module, alpha: float) -> None:
    """Give the surrogate of every spike site this steepness; the forward values do not know it."""
    for module in model.modules():
        if isinstance(module, (Spike, Neuron)):
            module.alpha = alpha


@contextmanager
def record_rates(model: nn.Module) -> Iterator[dict[str, float]]:
    """Fill the yielded dict, when the block ends, with each site's spikes per unit and token, in [0, 1].

    All forward passes inside the block count alike.
    """
    rates: dict[str, float] = {}
    with watch_sites(model) as means:
        yield rates
    rates |= {name: float(sum(parts) / len(parts)) for name, parts in means.items() if parts}


@contextmanager
def watch_sites(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Yields site -> spikes per unit and token of each forward pass inside the block, as tensors on the device."""
    means: dict[str, list[Tensor]] = {}
    hooks = [module.register_forward_hook(partial(_record, means.setdefault(name, [])))
             for name, module in spike_sites(model).items()]
    try:
        yield means
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def differentiable_rates(model: nn.Module) -> Iterator[list[Tensor]]:
    """Fill the yielded list, in forward order, with each site's mean spike, which is its rate where spikes are binary:
    scalars float32 with the gradient of the spikes. Present tokens and padding count alike."""
    rates: list[Tensor] = []
    hooks = [module.register_forward_hook(lambda _, inputs, output: rates.append(_first(output).mean(dtype=float32)))
             for module in spike_sites(model).values()]
    try:
        yield rates
    finally:
        for hook in hooks:
            hook.remove()


def _record(means: list[Tensor], module: nn.Module, inputs: Any, output: Any) -> None:
    spikes = _first(output)
    means.append(spikes.detach().count_nonzero() / spikes.numel())  # a tensor: no wait for the device here


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
