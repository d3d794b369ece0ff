"""The share between two paths: y = d + a (x - d), with one learned a for all.

Its gradients, ∂x = a g, ∂d = (1 - a) g and ∂a = Σ g (x - d), are one pass over memory natively; autograd makes five.
"""

import torch
from torch import Tensor

from symboliclight.ops import native


def mix_loop(d: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """The specification of `mix`, differentiated by autograd."""
    return d + a * (x - d)


def mix(d: Tensor, x: Tensor, a: Tensor) -> Tensor:
    """y (...) of d and x (...), alike in shape and dtype, and a (1,)."""
    if torch.is_grad_enabled() and native.takes(d) and not torch.compiler.is_compiling():
        return _Mix.apply(d, x, a)
    return torch.lerp(d, x, a.to(d.dtype))


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, d, x, a):  # type: ignore[override]
        ctx.save_for_backward(d, x, a)
        return torch.lerp(d, x, a.to(d.dtype))

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        d, x, a = ctx.saved_tensors
        grad_d, grad_x, grad_a = native.mix_gradients(grad, d, x, float(a.to(d.dtype)))
        return grad_d, grad_x, grad_a.to(a.dtype).view(a.shape)
