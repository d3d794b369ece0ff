"""Spikes of a potential v against a threshold θ, by code, and their gradients (DESIGN section 1, "Gradients").

    code      value s                        slope ds/dv
    binary    1[v >= θ]                      σ(v - θ)                          surrogate
    ternary   1[v >= θ] - 1[v <= -θ]         σ(v - θ) + σ(v + θ)               surrogate (SpikeLM, arXiv 2406.03287)
    integer   clip(round(v / θ), 0, D)       1/θ where 0 <= v <= D θ, else 0   straight through (I-LIF, 2407.20708)
    graded    v 1[v >= θ]                    1[v >= θ] + θ σ(v - θ)            exact but for the jump's surrogate
    shifted   max(v - θ, 0)                  1[v > θ]                          exact
    squared   max(v - θ, 0)²                 2 max(v - θ, 0)                   exact

σ(d) = 1 / (1 + (α d)²) where |d| <= cut, else 0, is the ATan surrogate. round takes halves to the even number, as IEEE
does. An integer spike of s is s binary events of one step on a chip that sends nothing else.
"""

import math

import torch
from torch import Tensor
from torch.library import custom_op

from symboliclight.core.config import CODES

LEVELS = 4  # D of integer spikes where nothing else is said


def number(code: str) -> int:
    """Place of a code in `CODES`, as kernels know it."""
    if code not in CODES:
        raise ValueError(f"unknown code of a spike {code!r}; it is one of: {', '.join(CODES)}")
    return CODES.index(code)  # type: ignore[arg-type]


def surrogate(v: Tensor, threshold: Tensor | float, alpha: float, cut: float = math.inf) -> Tensor:
    """ATan surrogate derivative σ(v - θ), elementwise, at most 1."""
    distance = v - threshold
    slope = (distance * alpha).square_().add_(1).reciprocal_()
    return slope if cut == math.inf else slope.masked_fill_(distance.abs() > cut, 0)


def spike(
    v: Tensor, threshold: Tensor, alpha: float = 2.0, code: str = "binary", levels: int = LEVELS, cut: float = math.inf
) -> Tensor:
    """Spikes of `v` (any shape) against `threshold` (positive, broadcastable to v), in the dtype of v.

    alpha, cut: width and reach of the surrogate; levels: D of integer spikes. The threshold has a gradient as well.
    """
    return spike_forward(v, threshold.to(v.dtype), alpha, code, levels, cut)


def spike_loop(v: Tensor, threshold: Tensor, code: str = "binary", levels: int = LEVELS) -> Tensor:
    """The specification of the values of `spike`: one number after another, by the table above."""
    level = threshold.to(v.dtype).expand(v.shape)
    pairs = zip(v.flatten().tolist(), level.flatten().tolist(), strict=True)
    return torch.tensor([_value(x, theta, code, levels) for x, theta in pairs], dtype=v.dtype).view(v.shape)


def _value(v: float, theta: float, code: str, levels: int) -> float:
    if code == "binary":
        return float(v >= theta)
    if code == "ternary":
        return float(v >= theta) - float(v <= -theta)
    if code == "integer":
        return float(min(max(round(v / theta), 0), levels))
    if code == "graded":
        return v if v >= theta else 0.0
    return max(v - theta, 0.0) ** (2 if code == "squared" else 1)


def channel_levels(v: Tensor, threshold: Tensor) -> Tensor | None:
    """The threshold as one value or one a channel of the last dimension, contiguous; None if it is neither."""
    if threshold.numel() == 1:
        return threshold.reshape(1)
    return threshold.expand(v.shape[-1:]).contiguous() if threshold.dim() == 1 else None


def spike_forward_torch(v: Tensor, threshold: Tensor, alpha: float, code: str, levels: int, cut: float) -> Tensor:
    if number(code) and v.dtype == torch.bfloat16:  # values are rounded once, at the end
        return spike_forward_torch(v.float(), threshold.float(), alpha, code, levels, cut).to(v.dtype)
    if code == "binary":
        s = (v >= threshold).to(v.dtype)
    elif code == "ternary":
        s = (v >= threshold).to(v.dtype) - (v <= -threshold).to(v.dtype)
    elif code == "integer":
        s = (v / threshold).round().clamp(0, levels)
    elif code == "graded":
        s = v * (v >= threshold)
    else:
        s = (v - threshold).clamp(min=0)
        s = s.square() if code == "squared" else s
    return s.contiguous()


spike_forward = custom_op("symboliclight::spike", mutates_args=())(spike_forward_torch)


@spike_forward.register_fake
def _(v: Tensor, threshold: Tensor, alpha: float, code: str, levels: int, cut: float) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


def spike_slope(v: Tensor, threshold: Tensor, alpha: float, code: str, levels: int, cut: float) -> Tensor:
    """ds/dv of the table above, elementwise."""
    if (number(code) or cut != math.inf) and v.dtype == torch.bfloat16:
        return spike_slope(v.float(), threshold.float(), alpha, code, levels, cut)
    if code == "binary":
        return surrogate(v, threshold, alpha, cut)
    if code == "ternary":
        return surrogate(v, threshold, alpha, cut) + surrogate(v, -threshold, alpha, cut)
    if code == "integer":
        return ((v >= 0) & (v <= levels * threshold)).to(v.dtype) / threshold
    if code == "graded":
        return surrogate(v, threshold, alpha, cut) * threshold + (v >= threshold)
    if code == "shifted":
        return (v > threshold).to(v.dtype)
    return (v - threshold).clamp_(min=0).mul_(2)


def spike_backward_torch(
    grad: Tensor, v: Tensor, threshold: Tensor, alpha: float, code: str, levels: int, cut: float
) -> Tensor:
    return (grad * spike_slope(v, threshold, alpha, code, levels, cut)).to(v.dtype).contiguous()


spike_backward = custom_op("symboliclight::spike_backward", mutates_args=())(spike_backward_torch)


@spike_backward.register_fake
def _(grad: Tensor, v: Tensor, threshold: Tensor, alpha: float, code: str, levels: int, cut: float) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


def _threshold_slope(v: Tensor, threshold: Tensor, alpha: float, code: str, levels: int, cut: float) -> Tensor:
    """ds/dθ where it is not -ds/dv."""
    if code == "ternary":
        return surrogate(v, -threshold, alpha, cut) - surrogate(v, threshold, alpha, cut)
    if code == "integer":
        return -v * ((v >= 0) & (v <= levels * threshold)) / threshold.square()
    return -surrogate(v, threshold, alpha, cut) * threshold  # graded: the jump alone moves


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    v, threshold, *ctx.options = inputs
    ctx.save_for_backward(v, threshold)


def _differentiate(ctx, grad):  # type: ignore[no-untyped-def]
    v, threshold = ctx.saved_tensors
    grad_v = spike_backward(grad, v, threshold, *ctx.options)
    grad_threshold = None
    if ctx.needs_input_grad[1]:
        opposite = ctx.options[1] in ("binary", "shifted", "squared")
        each = -grad_v if opposite else grad * _threshold_slope(v, threshold, *ctx.options)
        grad_threshold = each.sum_to_size(threshold.shape)
    return grad_v, grad_threshold, None, None, None, None


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
