"""A model of ours under the harness of the `neurobench` package (arXiv 2304.04640; pip install neurobench).

    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import ConnectionSparsity, Footprint
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    from symboliclight.interop.neurobench import Adapter

    Benchmark(Adapter(model), loader, [], [], [[Footprint, ConnectionSparsity],
                                               [ActivationSparsity, SynapticOperations]]).run()

`loader` yields (tokens (B, T) int64, targets). NeuroBench divides by B, so its operations are those of a window of T
tokens. It counts linear maps; `symboliclight.measure.operations` counts the same by its rule, exactly, and the rest.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from symboliclight.core.errors import InputError
from symboliclight.model.lm import SymbolicLight
from symboliclight.model.sites import spike_sites

try:
    from neurobench.hooks.layer import LayerHook
    from neurobench.hooks.neuron import NeuronHook
    from neurobench.models import NeuroBenchModel
except ImportError as missing:
    raise InputError(f"NeuroBench cannot be imported ({missing}): pip install neurobench") from missing


class _SiteHook(NeuronHook):
    """Keeps the spikes only: the encoder gives its membrane as well."""

    def hook_fn(self, layer: nn.Module, input: Any, output: Any) -> None:
        self.activation_outputs.append(output[0] if isinstance(output, tuple) else output)


class Adapter(NeuroBenchModel):
    """`NeuroBenchModel` of a SymbolicLight model: (B, T) tokens -> (B, T, V) logits; activations are its spike sites.

    NeuroBench sees a linear map when its module is called. The maps that read spikes, and the head, are computed by
    ops from their weights alone; while hooks are set, the adapter calls those modules too, on the same inputs.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, SymbolicLight):
            raise InputError(f"NeuroBench counts no layer of {type(model).__name__}; use a SymbolicLight model")
        self.net = model.eval()

    def __call__(self, batch: Tensor) -> Tensor:
        with torch.inference_mode(), _shown(self.net) if self.connection_hooks else torch.inference_mode():
            return self.net(batch)[0]

    def __net__(self) -> nn.Module:
        return self.net

    def activation_layers(self) -> list[dict[str, Any]]:
        """Spike sites under our names."""
        return [{"layer_name": name, "layer": module} for name, module in spike_sites(self.net).items()]

    def register_hooks(self) -> None:
        """NeuroBench's own hooks on linear maps, ours on spike sites."""
        self.activation_hooks += [_SiteHook(a["layer"], a["layer_name"]) for a in self.activation_layers()]
        self.connection_hooks += [LayerHook(layer) for layer in self.connection_layers()]


@contextmanager
def _shown(model: Any) -> Iterator[None]:
    """Call the modules that the model does not call itself, on what they stand for."""
    head, handles = model.head, []
    for block in model.blocks:
        if model.config.paths != "attention":
            tcam = block.mixer.tcam
            handles.append(block.mixer.register_forward_pre_hook(lambda _, inputs, tcam=tcam: _call(tcam, inputs[0])))
        down = block.ffn.down
        handles.append(block.ffn.activation.register_forward_hook(lambda _, inputs, f, down=down: _call(down, f)))
    if not head.tied:  # an embedding is no linear map to NeuroBench
        handles.append(head.register_forward_pre_hook(lambda _, inputs: _call(head.out, inputs[0])))
    if head.prior == "dynamic":
        handles.append(head.prior_down.register_forward_hook(
            lambda _, inputs, x: _call(head.prior_up, head.prior_weight * F.gelu(x))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _call(module: nn.Module, x: Tensor) -> None:
    module(x)
