"""Triton kernels of the membrane scan (float32) and the decay scan (float32 and bfloat16).

One program walks through time with the state of BLOCK channels of one row in registers, in float32. The equations are
those of `lif.py` and `decay.py`, the signatures those of their registered ops. Neuron and decay gradients are summed
over T in a program and over rows by torch, so that results do not depend on the order in which programs end.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64  # channels a program
# Loads run ahead of the recurrence, which alone is serial; a warp holds a program's channels.
LAUNCH: dict[str, Any] = {"BLOCK": BLOCK, "STAGES": 8, "num_warps": 1}
# A fused multiply-add rounds λ·r + x once, the loop twice: a membrane near θ would spike differently.
EXACT: dict[str, Any] = {"enable_fp_fusion": False}


def _grid(x: Tensor) -> tuple[int, int]:
    """Programs for x (B, T, ...): rows, blocks of channels."""
    return x.shape[0], triton.cdiv(x[0, 0].numel(), BLOCK)


@triton.jit
def _lif_forward(x, r0, leak, threshold, s, v, r, T, D, clamp, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = c < D
    rate, theta = tl.load(leak + c, mask=real), tl.load(threshold + c, mask=real)
    carry = tl.load(r0 + row * D + c, mask=real)
    at = row * T * D + c
    for _ in tl.range(T, num_stages=STAGES):
        v_t = tl.minimum(tl.maximum(rate * carry + tl.load(x + at, mask=real), -clamp), clamp)
        fired = v_t >= theta
        tl.store(v + at, v_t, mask=real)
        tl.store(s + at, fired.to(tl.float32), mask=real)
        carry = tl.where(fired, 0.0, v_t)
        at += D
    tl.store(r + row * D + c, carry, mask=real)


def lif_forward(
    x: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor, alpha: float, clamp: float, gradient: str
) -> tuple[Tensor, Tensor, Tensor]:
    x, r0, leak, threshold = (t.contiguous() for t in (x, r0, leak, threshold))
    s, v, r = torch.empty_like(x), torch.empty_like(x), torch.empty_like(r0)
    _lif_forward[_grid(x)](x, r0, leak, threshold, s, v, r, *x.shape[1:], clamp, **LAUNCH, **EXACT)
    return s, v, r


@triton.jit
def _lif_backward(
    grad_s, grad_r, v, r0, leak, threshold, grad_x, grad_r0, grad_leak, grad_threshold, T, D, alpha, clamp,
    RECURRENT: tl.constexpr, ATTACHED: tl.constexpr, LEARNED: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = c < D
    rate, theta = tl.load(leak + c, mask=real), tl.load(threshold + c, mask=real)
    first = tl.load(r0 + row * D + c, mask=real)
    zero = tl.zeros([BLOCK], tl.float32)
    carry, leak_sum, threshold_sum = zero, zero, zero
    if RECURRENT:
        carry = tl.load(grad_r + row * D + c, mask=real)
    at = row * T * D + (T - 1) * D + c
    for step in tl.range(T, num_stages=STAGES):
        v_t, fire = tl.load(v + at, mask=real), tl.load(grad_s + at, mask=real)
        distance = alpha * (v_t - theta)
        slope = 1 / (1 + distance * distance)
        if ATTACHED:
            fire -= carry * v_t
        grad = fire * slope
        if RECURRENT:
            grad += tl.where(v_t < theta, carry, 0.0)
        grad = tl.where(tl.abs(v_t) < clamp, grad, 0.0)
        tl.store(grad_x + at, grad, mask=real)
        if RECURRENT:
            carry = rate * grad
        if LEARNED:
            before = tl.load(v + at - D, mask=real & (step < T - 1), other=0.0)
            before = tl.where(step < T - 1, tl.where(before < theta, before, 0.0), first)
            leak_sum += grad * before
            threshold_sum -= fire * slope
        at -= D
    tl.store(grad_r0 + row * D + c, carry, mask=real)
    tl.store(grad_leak + row * D + c, leak_sum, mask=real)
    tl.store(grad_threshold + row * D + c, threshold_sum, mask=real)


def lif_backward(
    grad_s: Tensor, grad_r: Tensor, v: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor,
    alpha: float, clamp: float, gradient: str, learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = [t.contiguous() for t in (grad_s, grad_r, v, r0, leak, threshold)]
    grad_x, grad_r0, grad_leak, grad_threshold = (torch.empty_like(t) for t in (tensors[2], *3 * [tensors[3]]))
    _lif_backward[_grid(v)](
        *tensors, grad_x, grad_r0, grad_leak, grad_threshold, *v.shape[1:], alpha, clamp,
        RECURRENT=gradient != "local", ATTACHED=gradient == "bptt", LEARNED=learned, **LAUNCH)
    return grad_x, grad_r0, grad_leak.sum(0), grad_threshold.sum(0)


@triton.jit
def _decay_forward(u, decay, h0, h, last, T, D, K, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = c < D
    rate, carry = tl.load(decay + c // K, mask=real), tl.load(h0 + row * D + c, mask=real)
    at = row * T * D + c
    for _ in tl.range(T, num_stages=STAGES):
        carry = rate * carry + (1 - rate) * tl.load(u + at, mask=real).to(tl.float32)
        tl.store(h + at, carry.to(h.dtype.element_ty), mask=real)
        at += D
    tl.store(last + row * D + c, carry, mask=real)


def decay_forward(u: Tensor, decay: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    u, decay, h0 = (t.contiguous() for t in (u, decay, h0))
    h, last = torch.empty_like(u), torch.empty_like(h0)
    T, H, K = u.shape[1:]
    _decay_forward[_grid(u)](u, decay, h0, h, last, T, H * K, K, **LAUNCH)
    return h, last


@triton.jit
def _decay_backward(
    grad_h, grad_last, u, h, decay, h0, grad_u, grad_decay, grad_h0, T, D, K, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):
    row, c = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = c < D
    rate, first = tl.load(decay + c // K, mask=real), tl.load(h0 + row * D + c, mask=real)
    carry, rate_sum = tl.load(grad_last + row * D + c, mask=real), tl.zeros([BLOCK], tl.float32)
    at = row * T * D + (T - 1) * D + c
    for step in tl.range(T, num_stages=STAGES):
        grad = tl.load(grad_h + at, mask=real).to(tl.float32) + carry
        before = tl.load(h + at - D, mask=real & (step < T - 1), other=0.0).to(tl.float32)
        before = tl.where(step < T - 1, before, first)
        rate_sum += grad * (before - tl.load(u + at, mask=real).to(tl.float32))
        tl.store(grad_u + at, ((1 - rate) * grad).to(grad_u.dtype.element_ty), mask=real)
        carry = rate * grad
        at -= D
    tl.store(grad_h0 + row * D + c, carry, mask=real)
    tl.store(grad_decay + row * D + c, rate_sum, mask=real)


def decay_backward(
    grad_h: Tensor, grad_last: Tensor, u: Tensor, h: Tensor, decay: Tensor, h0: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = [t.contiguous() for t in (grad_h, grad_last, u, h, decay, h0)]
    grad_u, grad_decay, grad_h0 = (torch.empty_like(tensors[n]) for n in (2, 5, 5))
    T, H, K = u.shape[1:]
    _decay_backward[_grid(u)](*tensors, grad_u, grad_decay, grad_h0, T, H * K, K, **LAUNCH)
    return grad_u, grad_decay.sum((0, 2)), grad_h0
