"""Two matrices with spikes between them.

    y = W_2 1[W_1 x >= θ]

The hidden units are several times as wide as the stream, and most of them silent. Where products run at the machine's
rate, passing over them is what takes the time, so here spikes are read off the potentials and never written, and the
gradient of the potentials takes the place of that of the spikes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from symboliclight.ops import native
from symboliclight.ops.events import break_even, gathers
from symboliclight.ops.spike import spike


def spiking_pair_loop(x: Tensor, up: Tensor, down: Tensor, threshold: Tensor, alpha: float = 2.0) -> Tensor:
    """The specification of `spiking_pair`: one op after another, differentiated by autograd."""
    return F.linear(spike(F.linear(x, up), threshold, alpha), down)


def pairs(x: Tensor) -> bool:
    """Whether `spiking_pair` serves x now: training in float32 on the CPU, where gathering pays.

    Under autocast the plain ops multiply in bfloat16, whose hidden units are half as large.
    """
    return (torch.is_grad_enabled() and x.dtype == torch.float32 and native.takes(x)
            and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling() and break_even(x.dtype) > 0)


def spiking_pair(x: Tensor, up: Tensor, down: Tensor, threshold: Tensor, alpha: float = 2.0) -> Tensor:
    """y (..., N) of x (..., D), up (M, D), down (N, M) and one threshold, a number; the gradient is the surrogate's."""
    return _Pair.apply(x, up, down, threshold, alpha)


class _Pair(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, up, down, threshold, alpha):  # type: ignore[override]
        level = float(threshold)
        v = F.linear(x.reshape(-1, x.shape[-1]), up)
        ctx.gather, ctx.alpha, ctx.level = gathers(v, level), alpha, level
        ctx.save_for_backward(x, up, down, threshold, v)
        y = native.event_product(v, down.t(), threshold=level) if ctx.gather else F.linear(_spikes(v, level), down)
        return y.view(*x.shape[:-1], len(down))

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, up, down, threshold, v = ctx.saved_tensors
        rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(len(v), -1)
        grad_v = native.spike_slope_(grad @ down, v, threshold, ctx.alpha)
        if ctx.gather:
            grad_down = native.event_product(v, grad, by_columns=True, threshold=ctx.level)
        else:
            grad_down = grad.t() @ _spikes(v, ctx.level)
        return (grad_v @ up).view(x.shape), grad_v.t() @ rows, grad_down, None, None


def _spikes(v: Tensor, level: float) -> Tensor:
    return (v >= level).to(v.dtype)
