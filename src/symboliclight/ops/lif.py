"""Membrane scan of the leaky integrate-and-fire encoder (DESIGN section 1, "Encoder").

    v_t = clamp(λ · r_{t-1} + x_t, -c, c);   s_t = 1[v_t >= θ];   r_t = v_t (1 - s_t)

r is the membrane after the hard reset; r_0 = 0 at the start of a sequence and r_T is the state handed on.

The same neuron elsewhere, both without the clamp: snntorch.Leaky(beta=λ, threshold=θ, reset_mechanism="zero"), which
fires for v > θ and hands on v, to reset it in the next step; spikingjelly LIFNode(tau=1/(1-λ), decay_input=False,
v_threshold=θ, v_reset=0.0), which fires for v >= θ and, by default, would divide x by tau (tests/ops/test_neurons.py).

Gradients. `local` (the V1 default): s_t depends on x_t alone, r_{t-1} is a constant, and the state carries no
gradient. `bptt`: the true recurrence, with the surrogate for ds/dv in the reset as well. `bptt_detached`: the
recurrence with the reset factor (1 - s_t) held constant. The hard reset makes the recurrence no associative scan of
bounded size, so the torch form still walks over T, but without an autograd tape; its local gradient has no loop.
At the bounds of the clamp the derivative is 0. The membrane lives in the dtype of r_0, whatever the dtype of x.

A neuron that fires at v_t >= θ may send more than 1: the `graded` v_t or the `shifted` v_t - θ (ops/spike.py), and is
reset all the same. Their gradient is local.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from symboliclight.ops.spike import spike, surrogate

LIF_CODES = ("binary", "graded", "shifted")


def lif_scan_loop(
    x: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor, alpha: float = 2.0, clamp: float = 3.0,
    gradient: str = "local", code: str = "binary", cut: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """The specification of `lif_scan`: one step a token, differentiated by autograd."""
    r, spikes = r0, []
    for x_t in x.unbind(1):
        r = r.detach() if gradient == "local" else r
        v = F.hardtanh(leak * r + x_t, -clamp, clamp)  # clamp() would have slope 1 on its bounds
        s = spike(v, threshold, alpha)
        r = v * (1 - (s.detach() if gradient == "bptt_detached" else s))
        spikes.append(s if code == "binary" else spike(v, threshold, alpha, code, cut=cut))
    return torch.stack(spikes, 1).to(x.dtype), r.detach() if gradient == "local" else r


def lif_scan(
    x: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor, alpha: float = 2.0, clamp: float = 3.0,
    gradient: str = "local", code: str = "binary", cut: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """Integrate, fire and reset along T.

    Args: x (B, T, D) input current; r0 (B, D) membrane after reset, float32 or float64; leak λ and threshold θ (D,);
        clamp bounds |v|; gradient is "local", "bptt" or "bptt_detached"; code is one of `LIF_CODES`, and binary unless
        the gradient is local; cut: reach of the surrogate of a code other than binary.
    Returns: spikes (B, T, D) in the dtype of x, and the membrane after the last reset (B, D) in the dtype of r0.
    """
    D = x.shape[-1]
    leak, threshold = leak.to(r0.dtype).expand(D), threshold.to(r0.dtype).expand(D)
    if code != "binary":
        return _valued(x, r0, leak, threshold, alpha, clamp, code, cut)
    s, _, r = lif_forward(x.to(r0.dtype), r0, leak, threshold, alpha, clamp, gradient)
    return s.to(x.dtype), r.detach() if gradient == "local" else r


def _valued(
    x: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor, alpha: float, clamp: float, code: str, cut: float
) -> tuple[Tensor, Tensor]:
    """`lif_scan` of valued spikes: the membrane of the binary scan, whose slope towards x is 1 inside the clamp."""
    v, r = _Membrane.apply(x.to(r0.dtype), r0, leak, threshold.detach(), alpha, clamp)
    return spike(v, threshold, alpha, code, cut=cut).to(x.dtype), r


class _Membrane(torch.autograd.Function):
    """Membrane before reset (B, T, D) and after the last one (B, D), differentiable locally."""

    @staticmethod
    def forward(ctx, x, r0, leak, threshold, alpha, clamp):  # type: ignore[override]
        _, v, r = lif_forward(x, r0, leak, threshold, alpha, clamp, "local")
        ctx.save_for_backward(v, r0, threshold)
        ctx.clamp = clamp
        ctx.mark_non_differentiable(r)
        return v, r

    @staticmethod
    def backward(ctx, grad, _):  # type: ignore[override]
        v, r0, threshold = ctx.saved_tensors
        grad = grad * (v.abs() < ctx.clamp)
        grad_leak = None
        if ctx.needs_input_grad[2]:
            grad_leak = (grad * torch.cat([r0[:, None], (v * (v < threshold))[:, :-1]], 1)).sum((0, 1))
        return grad, None, grad_leak, None, None, None


def lif_forward_torch(
    x: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor, alpha: float, clamp: float, gradient: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes (B, T, D), membrane before reset (B, T, D), membrane after the last reset (B, D), all contiguous."""
    v, r = x.new_empty(x.shape), r0.clone(memory_format=torch.contiguous_format)
    for x_t, v_t in zip(x.unbind(1), v.unbind(1), strict=True):
        torch.mul(r, leak, out=v_t)
        v_t.add_(x_t).clamp_(-clamp, clamp)
        torch.mul(v_t, v_t < threshold, out=r)
    return (v >= threshold).to(x.dtype), v, r


lif_forward = custom_op("symboliclight::lif_scan", mutates_args=())(lif_forward_torch)


@lif_forward.register_fake
def _(
    x: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor, alpha: float, clamp: float, gradient: str
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(r0.shape)


def lif_backward_torch(
    grad_s: Tensor, grad_r: Tensor, v: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor,
    alpha: float, clamp: float, gradient: str, learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (B, T, D), r0 (B, D), leak (D,), threshold (D,); the last two are 0 unless `learned`.

    With σ the surrogate and κ_t = ∂L/∂r_t = λ ∂L/∂x_{t+1}, which is 0 in the local mode:
        ∂L/∂s_t = grad_s_t - κ_t v_t [bptt],   ∂L/∂x_t = 1[|v_t| < c] (σ_t ∂L/∂s_t + κ_t (1 - s_t))
    """
    slope, inside = surrogate(v, threshold, alpha), v.abs() < clamp
    grad_x, carry = (slope * inside).mul_(grad_s), v.new_zeros(r0.shape)
    if gradient != "local":
        slip = (v < threshold).to(v.dtype)  # ∂r_t/∂v_t
        if gradient == "bptt":
            slip.addcmul_(slope, v, value=-1)
        carry = _walk_back(grad_x, slip.mul_(inside), grad_r, leak)
    if not learned:
        return grad_x, carry, v.new_zeros(leak.shape), v.new_zeros(threshold.shape)
    r = torch.cat([r0[:, None], (v * (v < threshold))[:, :-1]], 1)
    grad_fire = grad_s
    if gradient == "bptt":
        grad_fire = grad_fire - torch.cat([grad_x[:, 1:] * leak, grad_r[:, None]], 1) * v
    return grad_x, carry, (grad_x * r).sum((0, 1)), -(grad_fire * slope).sum((0, 1))


def _walk_back(grad_x: Tensor, slip: Tensor, grad_r: Tensor, leak: Tensor) -> Tensor:
    """Add what flows back through the membrane to grad_x (B, T, D), in place; returns the gradient of r_0."""
    carry = grad_r.clone(memory_format=torch.contiguous_format)
    for grad_t, slip_t in zip(reversed(grad_x.unbind(1)), reversed(slip.unbind(1)), strict=True):
        grad_t.addcmul_(carry, slip_t)
        torch.mul(grad_t, leak, out=carry)
    return carry


lif_backward = custom_op("symboliclight::lif_scan_backward", mutates_args=())(lif_backward_torch)


@lif_backward.register_fake
def _(
    grad_s: Tensor, grad_r: Tensor, v: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor,
    alpha: float, clamp: float, gradient: str, learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(r0.shape), v.new_empty(leak.shape), v.new_empty(threshold.shape)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, r0, leak, threshold, alpha, clamp, gradient = inputs
    ctx.save_for_backward(output[1], r0, leak, threshold)
    ctx.options = alpha, clamp, gradient
    ctx.set_materialize_grads(False)  # v has no gradient, and zeros for it would cost as much as the scan


def _differentiate(ctx, grad_s, _, grad_r):  # type: ignore[no-untyped-def]
    v, r0, leak, threshold = ctx.saved_tensors
    grad_s = torch.zeros_like(v) if grad_s is None else grad_s
    grad_r = torch.zeros_like(r0) if grad_r is None else grad_r
    learned = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
    return *lif_backward(grad_s, grad_r, v, r0, leak, threshold, *ctx.options, learned), None, None, None


lif_forward.register_autograd(_differentiate, setup_context=_save)
