"""Dropout whose mask is a function of a seed and the place, so that nothing is kept for the backward pass.

    y_i = x_i / (1 - p)  if mix(mix(i) + seed) >= p · 2³²,  else 0

mix is a bijective hash of 32 bits; its sums and products are modulo 2³². i counts elements in memory order. The seed
comes from torch's CPU generator, so a run that restores that generator draws the same masks.
"""

import torch
from torch import Tensor
from torch.library import custom_op

_WORD = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def limit(p: float) -> int:
    """The hash value from which on an element is kept."""
    return round(p * 2**32)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Drop elements of x (any shape) with probability p in [0, 1), scale the rest; the identity unless `training`."""
    if not training or p == 0:
        return x
    if x.device.type != "cpu":  # other devices bring a generator of their own that is faster than this formula
        return torch.nn.functional.dropout(x, p)
    return dropout_forward(x, p, int(torch.randint(2**31, ())))


@custom_op("symboliclight::dropout", mutates_args=())
def dropout_forward(x: Tensor, p: float, seed: int) -> Tensor:
    return dropout_torch(x, p, seed)


def dropout_torch(x: Tensor, p: float, seed: int) -> Tensor:
    """The specification, in torch."""
    at = torch.arange(x.numel(), device=x.device).view(x.shape) & _WORD
    kept = _mix((_mix(at) + seed) & _WORD) >= limit(p)
    return torch.where(kept, x * (1 / (1 - p)), 0.0)


@dropout_forward.register_fake
def _(x: Tensor, p: float, seed: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, ctx.p, ctx.seed = inputs


def _differentiate(ctx, grad):  # type: ignore[no-untyped-def]
    return dropout_forward(grad, ctx.p, ctx.seed), None, None


dropout_forward.register_autograd(_differentiate, setup_context=_save)
