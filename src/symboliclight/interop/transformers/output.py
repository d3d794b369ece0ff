"""The output layer in the form of other models' `lm_head`, for code such as trl's that multiplies by its weight."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from symboliclight.model.head import Head


class OutputLayer(nn.Module):
    """logits = h Wᵀ + b with h = [c; w · GELU(W_1 c)] and W = [W_o, W_2]: output and prior of the head in one product.

    It has no weights of its own: gradients of W and b reach those of the head.
    """

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = (head,)  # in a tuple, so that its weights are named once

    @property
    def weight(self) -> Tensor:
        """W (V, D), with the dynamic prior (V, D + D / 4). Raises ValueError if an adapter stands on one of the two."""
        if self.head[0].adapted:
            raise ValueError("an adapter on the head would not be trained here, since its weight is read; leave "
                             "head.out and head.prior_up out of the adapter's target_modules")
        return torch.cat(self._terms()[1], 1)

    @property
    def bias(self) -> Tensor | None:
        """b (V,) of the static prior."""
        return self._terms()[2]

    def forward(self, hidden: Tensor) -> Tensor:
        """h (..., D or D + D / 4) -> logits (..., V)."""
        return F.linear(hidden, self.weight, self.bias)

    def _terms(self) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        weight = self.head[0].weight
        return self.head[0].terms(weight.new_zeros(1, weight.shape[1]))
