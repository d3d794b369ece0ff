"""Exponential-decay scan, the long memory of the mixer (DESIGN section 1, "decay").

    h_t = d · h_{t-1} + (1 - d) · u_t        one rate d in (0, 1) per head

Its adjoint is the same scan run backwards: G_t = ∂L/∂h_t + d · G_{t+1}; then ∂L/∂u_t = (1 - d) G_t,
∂L/∂d = Σ_t G_t (h_{t-1} - u_t) and ∂L/∂h_0 = d · G_1. State and sums are float32 (float64 for float64 input).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.library import custom_op


def decay_scan_loop(u: Tensor, decay: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """The specification of `decay_scan`: one step a token, differentiated by autograd."""
    d, h, states = decay[:, None], h0, []
    for u_t in u.to(h0.dtype).unbind(1):
        h = d * h + (1 - d) * u_t
        states.append(h)
    return torch.stack(states, 1).to(u.dtype), h


def decay_scan(u: Tensor, decay: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """Run the decay along T, linear in T.

    Args: u (B, T, H, K) input; decay d (H,) in (0, 1); h0 (B, H, K) state, float32 or float64.
    Returns: h (B, T, H, K) in the dtype of u, and the last state (B, H, K) in the dtype of h0.
    """
    return decay_forward(u, decay.to(h0.dtype), h0)


def _scan(x: Tensor, decay: Tensor, carry: Tensor) -> Tensor:
    """y_t = d · y_{t-1} + x_t in √T chunks of √T steps: every chunk walks at once, then the carries join them."""
    B, T, H, K = x.shape
    C = math.isqrt(T - 1) + 1
    n = -(-T // C)
    rate = decay[:, None].expand(H, K).reshape(H * K)
    y = x.new_zeros(B, n * C, H * K)
    y[:, :T] = x.flatten(2)
    y = y.view(B, n, C, H * K)
    steps = y.unbind(2)
    for before, step in pairwise(steps):
        step.addcmul_(before, rate)
    fade = rate ** torch.arange(1, C + 1, device=x.device)[:, None]  # (C, D): what each step keeps of the chunk's carry
    carries = [carry.flatten(1)]
    for end in steps[-1].unbind(1)[:-1]:
        carries.append(torch.addcmul(end, carries[-1], fade[-1]))
    y.addcmul_(torch.stack(carries, 1)[:, :, None], fade)
    return y.view(B, n * C, H, K)[:, :T]


def decay_forward_torch(u: Tensor, decay: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    h = _scan(u.to(h0.dtype) * (1 - decay)[:, None], decay, h0)
    return h.to(u.dtype).contiguous(), h[:, -1].clone()


decay_forward = custom_op("symboliclight::decay_scan", mutates_args=())(decay_forward_torch)


@decay_forward.register_fake
def _(u: Tensor, decay: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u, memory_format=torch.contiguous_format), torch.empty_like(h0)


def decay_backward_torch(
    grad_h: Tensor, grad_last: Tensor, u: Tensor, h: Tensor, decay: Tensor, h0: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u (B, T, H, K), decay (H,), h0 (B, H, K)."""
    grad = grad_h.to(h0.dtype, copy=True)
    grad[:, -1] += grad_last
    total = _scan(grad.flip(1), decay, torch.zeros_like(h0)).flip(1)
    before = torch.cat([h0[:, None], h[:, :-1].to(h0.dtype)], 1)
    grad_decay = (total * (before - u.to(h0.dtype))).sum((0, 1, 3))
    grad_u = (total * (1 - decay)[:, None]).to(u.dtype)
    return grad_u, grad_decay, decay[:, None] * total[:, 0]


decay_backward = custom_op("symboliclight::decay_scan_backward", mutates_args=())(decay_backward_torch)


@decay_backward.register_fake
def _(
    grad_h: Tensor, grad_last: Tensor, u: Tensor, h: Tensor, decay: Tensor, h0: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(u, memory_format=torch.contiguous_format), torch.empty_like(decay), torch.empty_like(h0)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    u, decay, h0 = inputs
    ctx.save_for_backward(u, output[0], decay, h0)


def _differentiate(ctx, grad_h, grad_last):  # type: ignore[no-untyped-def]
    return decay_backward(grad_h, grad_last, *ctx.saved_tensors)


decay_forward.register_autograd(_differentiate, setup_context=_save)
