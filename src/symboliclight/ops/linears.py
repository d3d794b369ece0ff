"""Several matrices that read one input: y_k = W_k x."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def linears(x: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """Each y_k (..., N_k) of x (..., D) and W_k (N_k, D).

    Training in float32 on the CPU, the gradients of x are summed inside the products that make them rather than by
    passes over memory of their own.
    """
    if (torch.is_grad_enabled() and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling() and x.dim() > 1):
        return _Linears.apply(x, *weights)
    return [F.linear(x, w) for w in weights]


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *weights):  # type: ignore[override]
        ctx.save_for_backward(x, *weights)
        return tuple(F.linear(x, w) for w in weights)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[override]
        x, *weights = ctx.saved_tensors
        rows, flat = x.reshape(-1, x.shape[-1]), [g.reshape(-1, g.shape[-1]) for g in grads]
        grad_x = flat[0] @ weights[0]
        for g, w in zip(flat[1:], weights[1:], strict=True):
            grad_x.addmm_(g, w)
        return grad_x.view(x.shape), *(g.t() @ rows for g in flat)
