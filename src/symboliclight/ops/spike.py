"""Threshold spikes with the ATan surrogate gradient (DESIGN section 1, "Gradients").

    s = 1[v >= θ],   ds/dv := 1 / (1 + (α (v - θ))²)
"""

import torch
from torch import Tensor
from torch.library import custom_op


def surrogate(v: Tensor, threshold: Tensor | float, alpha: float) -> Tensor:
    """ATan surrogate derivative 1 / (1 + (α (v - θ))²), elementwise, at most 1."""
    return ((v - threshold) * alpha).square_().add_(1).reciprocal_()


def spike(v: Tensor, threshold: Tensor, alpha: float = 2.0) -> Tensor:
    """Binary spikes of `v` (any shape) against `threshold` (broadcastable to v); the gradient is the surrogate."""
    return spike_forward(v, threshold.to(v.dtype), alpha)


def levels(v: Tensor, threshold: Tensor) -> Tensor | None:
    """The threshold as one value or one a channel of the last dimension, contiguous; None if it is neither."""
    if threshold.numel() == 1:
        return threshold.reshape(1)
    return threshold.expand(v.shape[-1:]).contiguous() if threshold.dim() == 1 else None


def spike_forward_torch(v: Tensor, threshold: Tensor, alpha: float) -> Tensor:
    return (v >= threshold).to(v.dtype).contiguous()


spike_forward = custom_op("symboliclight::spike", mutates_args=())(spike_forward_torch)


@spike_forward.register_fake
def _(v: Tensor, threshold: Tensor, alpha: float) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


def spike_backward_torch(grad: Tensor, v: Tensor, threshold: Tensor, alpha: float) -> Tensor:
    return (grad * surrogate(v, threshold, alpha)).contiguous()


spike_backward = custom_op("symboliclight::spike_backward", mutates_args=())(spike_backward_torch)


@spike_backward.register_fake
def _(grad: Tensor, v: Tensor, threshold: Tensor, alpha: float) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    v, threshold, ctx.alpha = inputs
    ctx.save_for_backward(v, threshold)


def _differentiate(ctx, grad):  # type: ignore[no-untyped-def]
    v, threshold = ctx.saved_tensors
    grad_v = spike_backward(grad, v, threshold, ctx.alpha)
    return grad_v, -grad_v.sum_to_size(threshold.shape) if ctx.needs_input_grad[1] else None, None


spike_forward.register_autograd(_differentiate, setup_context=_save)


def topk_mask(x: Tensor, rate: float, alpha: float = 2.0) -> Tensor:
    """Mask of the round(rate · D) largest entries of each vector x (..., D); the control for the LIF neuron.

    The forward value is exactly 0/1. The gradient is the surrogate around the midpoint between the smallest
    kept and the largest dropped entry, which acts as that token's threshold and is itself held constant.
    """
    k = min(max(round(rate * x.shape[-1]), 1), x.shape[-1])
    largest, indices = x.detach().topk(min(k + 1, x.shape[-1]), dim=-1)
    middle = (largest[..., k - 1 : k] + largest[..., -1:]) / 2  # k = D: the smallest entry itself
    kept = torch.zeros_like(x).scatter_(-1, indices[..., :k], 1.0)
    return _StraightThrough.apply(x, kept, surrogate(x.detach(), middle, alpha))


class _StraightThrough(torch.autograd.Function):
    """Value `value`, gradient `slope` towards x: no rounding from writing value + x - x.detach()."""

    @staticmethod
    def forward(ctx, x: Tensor, value: Tensor, slope: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad * ctx.saved_tensors[0], None, None
