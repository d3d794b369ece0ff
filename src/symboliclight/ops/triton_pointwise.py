"""Triton kernels of what is done to each element, pair or row: spikes, rotary embedding, softmax loss.

In torch these are chains of small kernels, which on a GPU cost a launch and a pass over memory each. Sums are float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from symboliclight.ops.spike import channel_levels, number, spike_backward_torch, spike_forward_torch

BLOCK = 1024  # elements a program
COLUMNS = 4096  # logits of a row at one time, at most


@triton.jit
def _surrogate(distance, alpha, cut):
    slope = 1 / (1 + (alpha * distance) * (alpha * distance))
    return tl.where(tl.abs(distance) > cut, 0.0, slope)


@triton.jit
def _spike_forward(v, threshold, s, N, D, top, CODE: tl.constexpr, BLOCK: tl.constexpr):
    """CODE: place of the code in ops/spike.py; top: largest value of an integer spike."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < N
    x = tl.load(v + at, mask=real).to(tl.float32)
    theta = tl.load(threshold + at % D, mask=real, other=1.0).to(tl.float32)
    if CODE == 0:
        y = tl.where(x >= theta, 1.0, 0.0)
    elif CODE == 1:
        y = tl.where(x >= theta, 1.0, tl.where(x <= -theta, -1.0, 0.0))
    elif CODE == 2:
        y = tl.minimum(tl.maximum(tl.div_rn(x, theta), 0.0), top)
        y = (y + 12582912.0) - 12582912.0  # rounds to even
    elif CODE == 3:
        y = tl.where(x >= theta, x, 0.0)
    else:
        y = tl.maximum(x - theta, 0.0)
        if CODE == 5:
            y = y * y
    tl.store(s + at, y.to(s.dtype.element_ty), mask=real)


@triton.jit
def _spike_backward(grad, v, threshold, alpha, cut, grad_v, N, D, top, CODE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < N
    x = tl.load(v + at, mask=real).to(tl.float32)
    theta = tl.load(threshold + at % D, mask=real, other=1.0).to(tl.float32)
    if CODE == 0:
        slope = _surrogate(x - theta, alpha, cut)
    elif CODE == 1:
        slope = _surrogate(x - theta, alpha, cut) + _surrogate(x + theta, alpha, cut)
    elif CODE == 2:
        slope = tl.where((x >= 0) & (x <= top * theta), 1 / theta, 0.0)
    elif CODE == 3:
        slope = _surrogate(x - theta, alpha, cut) * theta + tl.where(x >= theta, 1.0, 0.0)
    elif CODE == 4:
        slope = tl.where(x > theta, 1.0, 0.0)
    else:
        slope = 2 * tl.maximum(x - theta, 0.0)
    slope = tl.load(grad + at, mask=real).to(tl.float32) * slope
    tl.store(grad_v + at, slope.to(grad_v.dtype.element_ty), mask=real)


def spike_forward(v: Tensor, threshold: Tensor, alpha: float, code: str, levels: int, cut: float) -> Tensor:
    level = channel_levels(v, threshold)
    if level is None:
        return spike_forward_torch(v, threshold, alpha, code, levels, cut)
    v = v.contiguous()
    s = torch.empty_like(v)
    _spike_forward[(triton.cdiv(v.numel(), BLOCK),)](
        v, level, s, v.numel(), len(level), float(levels), CODE=number(code), BLOCK=BLOCK)
    return s


def spike_backward(
    grad: Tensor, v: Tensor, threshold: Tensor, alpha: float, code: str, levels: int, cut: float
) -> Tensor:
    level = channel_levels(v, threshold)
    if level is None:
        return spike_backward_torch(grad, v, threshold, alpha, code, levels, cut)
    grad, v = grad.contiguous(), v.contiguous()
    grad_v = torch.empty_like(v)
    _spike_backward[(triton.cdiv(v.numel(), BLOCK),)](
        grad, v, level, alpha, cut, grad_v, v.numel(), len(level), float(levels), CODE=number(code), BLOCK=BLOCK)
    return grad_v


@triton.jit
def _rope(x, cos, sin, sign, y, N, PAIRS, HALF, BLOCK: tl.constexpr):
    """PAIRS pairs a token, HALF of them a head, whose tables are the token's."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < N
    token, pair = at // PAIRS, at % PAIRS
    angle = token * HALF + pair % HALF
    first = token * 2 * PAIRS + pair // HALF * 2 * HALF + pair % HALF
    c, s = tl.load(cos + angle, mask=real), tl.load(sin + angle, mask=real) * sign
    a = tl.load(x + first, mask=real).to(tl.float32)
    b = tl.load(x + first + HALF, mask=real).to(tl.float32)
    tl.store(y + first, (a * c - b * s).to(y.dtype.element_ty), mask=real)
    tl.store(y + first + HALF, (b * c + a * s).to(y.dtype.element_ty), mask=real)


def rope_forward(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    x, half = x.contiguous(), x.shape[-1] // 2
    cos, sin = (t.float().expand(*x.shape[:-2], half).contiguous() for t in (cos, sin))
    y, pairs = torch.empty_like(x), x.shape[-2] * half
    _rope[(triton.cdiv(x.numel() // 2, BLOCK),)](x, cos, sin, sign, y, x.numel() // 2, pairs, half, BLOCK=BLOCK)
    return y


@triton.jit
def _softmax_loss(logits, targets, scale, sums, z_loss, V, WANTED: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, COLUMNS)
    at, weight, target = logits + row * V, tl.load(scale + row), tl.maximum(tl.load(targets + row), 0)
    top, total = tl.full([], -float("inf"), tl.float32), tl.zeros([], tl.float32)
    for start in range(0, V, COLUMNS):
        x = tl.load(at + start + column, mask=start + column < V, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), 0)
        top = higher
    lse = top + tl.log(total)
    tl.store(sums + row * 2, (lse - tl.load(at + target).to(tl.float32)) * weight)
    tl.store(sums + row * 2 + 1, lse * lse * weight)
    if WANTED:
        tl.debug_barrier()  # the target's logit is read before it is written over
        rate = weight * (1 + 2 * z_loss * lse)
        for start in range(0, V, COLUMNS):
            real = start + column < V
            x = tl.load(at + start + column, mask=real).to(tl.float32)
            grad = tl.exp(x - lse) * rate - tl.where(start + column == target, weight, 0.0)
            tl.store(at + start + column, grad.to(logits.dtype.element_ty), mask=real)


def softmax_loss(logits: Tensor, targets: Tensor, scale: Tensor, z_loss: float, wanted: bool) -> Tensor:
    """Sums of scale · nll and scale · lse² over the rows of `logits` (N, V), which become their gradient if wanted."""
    sums = torch.empty(len(logits), 2, device=logits.device)
    columns = min(triton.next_power_of_2(logits.shape[1]), COLUMNS)
    _softmax_loss[(len(logits),)](logits, targets.contiguous(), scale.contiguous(), sums, z_loss, logits.shape[1],
                                  WANTED=wanted, COLUMNS=columns)
    return sums.sum(0)
