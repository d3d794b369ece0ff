"""Linear map of binary inputs: the sum of the weight columns whose input spiked.

    y = Σ_{i : s_i = 1} W[:, i]
"""

import torch
from torch import Tensor


def event_linear_loop(spikes: Tensor, weight: Tensor) -> Tensor:
    """The specification of `event_linear`: gather and add, one vector at a time."""
    flat = spikes.reshape(-1, spikes.shape[-1])
    rows = [weight[:, s.nonzero()[:, 0]].sum(1) for s in flat]
    return torch.stack(rows).view(*spikes.shape[:-1], weight.shape[0])


def event_linear(spikes: Tensor, weight: Tensor) -> Tensor:
    """y (..., N) of spikes (..., M), 0/1, and weight (N, M); any other input is the plain product."""
    return torch.nn.functional.linear(spikes, weight)
