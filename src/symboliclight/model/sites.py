"""Where a model spikes, by name."""

from torch import nn

from symboliclight.model.encoder import Spike
from symboliclight.model.lm import SymbolicLight


def spike_sites(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose output (first output, if several) is the 0/1 spikes (B, T, units) of a site, in forward order.

    Names: `encoder`; for each layer i `ffn.i` (hidden units) and `blocks.i` (block output). A site that the
    configuration made dense is absent; a model without spikes has none.
    """
    if not isinstance(model, SymbolicLight):
        return {}
    sites: dict[str, nn.Module] = {} if model.config.spike_source == "dense" else {"encoder": model.encoder.neuron}
    for i, block in enumerate(model.blocks):
        found = {f"ffn.{i}": block.get_submodule("ffn.activation"), f"blocks.{i}": block.get_submodule("spike")}
        sites |= {name: module for name, module in found.items() if isinstance(module, Spike)}
    return sites
