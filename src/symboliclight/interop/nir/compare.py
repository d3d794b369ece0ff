"""The executor's spike trains beside those of the torch model, site by site."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from symboliclight.interop.nir.executor import Run
from symboliclight.model.sites import spike_sites


class _Narrow(nn.Module):
    """A float32 norm inside a float64 model: input currents are float32 values by definition of the export."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.float()).to(x.dtype)


def widened(model: nn.Module) -> nn.Module:
    """The model in float64 behind its float32 input currents: the stored weights without rounding of their sums."""
    wide: Any = deepcopy(model).double().eval()
    wide.encoder.norm = _Narrow(deepcopy(wide.encoder.norm).float())
    return wide


def torch_run(model: nn.Module, tokens: Sequence[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits (T, V) and spikes by site, (T, units) bool, of one text read at once."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[name] = (output[0] if isinstance(output, tuple) else output)[0].bool().numpy()
        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in spike_sites(model).items()]
    try:
        with torch.no_grad():
            logits, _ = model.eval()(torch.tensor([list(tokens)]))
    finally:
        for hook in hooks:
            hook.remove()
    return logits[0].numpy(), found


def differences(run: Run, model: nn.Module, tokens: Sequence[int]) -> dict[str, Any]:
    """Spikes that differ from the torch model's, in all and by site, in float64 and float32; logits beside them.

    `first` is where a model first differs: the earliest token, there the first site, and the distance of that site's
    nearest membrane to its threshold. Its cause is a sum within rounding of the threshold; what follows depends on it.
    """
    found: dict[str, Any] = {}
    for name, one in (("float64", widened(model)), ("float32", model)):
        logits, spikes = torch_run(one, tokens)
        differ = {site: run.spikes[site] != spikes[site] for site in run.spikes}
        found[name] = {
            "spikes": sum(int(d.sum()) for d in differ.values()),
            "sites": {site: int(d.sum()) for site, d in differ.items()},
            "logits": float(np.abs(run.logits - logits).max()),
        }
        places = [(int(np.argwhere(d)[0, 0]), at, site) for at, (site, d) in enumerate(differ.items()) if d.any()]
        if places:
            token, _, site = min(places)
            found[name]["first"] = {"token": token, "site": site, "unit": int(np.flatnonzero(differ[site][token])[0]),
                                    "margin": float(run.margins[site][token])}
    return found
