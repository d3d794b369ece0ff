"""A learned mean of two tensors.

    y = (1 - w) · a + w · b        one share w for all

∂L/∂a = (1 - w) · g, ∂L/∂b = w · g and ∂L/∂w = Σ g · (b - a), all three in one pass over memory.
"""

import torch
from torch import Tensor
from torch.library import custom_op


def blend(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Blend a and b (any shape, one dtype) by `share` w, one number; same shape and dtype."""
    return blend_forward(a, b, share.to(a.dtype))


def blend_torch(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(a, b, share)


blend_forward = custom_op("symboliclight::blend", mutates_args=())(blend_torch)


@blend_forward.register_fake
def _(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    return torch.empty_like(a, memory_format=torch.contiguous_format)


def blend_backward_torch(grad: Tensor, a: Tensor, b: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and share."""
    return grad * (1 - share), grad * share, (grad * (b - a)).sum().view(share.shape)


blend_backward = custom_op("symboliclight::blend_backward", mutates_args=())(blend_backward_torch)


@blend_backward.register_fake
def _(grad: Tensor, a: Tensor, b: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(b), torch.empty_like(share)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):  # type: ignore[no-untyped-def]
    return blend_backward(grad, *ctx.saved_tensors)


blend_forward.register_autograd(_differentiate, setup_context=_save)
