"""Native CPU kernels (csrc/) for the registered ops; everything else runs the torch forms.

Native are float32 and bfloat16 on the CPU, outside `torch_forms()`. The module `symboliclight._native` is built by
`pip install`; without it the torch forms run, and one warning says so.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from symboliclight.core.errors import Slow
from symboliclight.core.processor import native_module
from symboliclight.ops import conv, decay, lif
from symboliclight.ops import dropout as dropping
from symboliclight.ops import rope as rotary
from symboliclight.ops import spike as spiking
from symboliclight.ops.blend import blend_backward as blended
from symboliclight.ops.blend import blend_backward_torch

_native: Any = None
_missing = ""
try:
    _native = native_module("_native")
except ImportError as error:  # a broken build is told apart from a missing one by its message
    _missing = str(error)
    warnings.warn(
        f"symboliclight has no native kernels ({error}): training on CPU will be slow; "
        "install a C++ compiler and reinstall symboliclight", Slow, stacklevel=2)
else:
    _native.set_dtypes(torch.float32, torch.bfloat16, torch.int64, torch.bool)

DTYPES = (torch.float32, torch.bfloat16)
_PIECE = 1 << 14  # elements whose sum blend_backward gives (csrc/kernels/pointwise.hpp)
_forced_torch = False
_registered = ["window_attention", "event_linear"]


@contextmanager
def torch_forms() -> Iterator[None]:
    """Run the torch form of every op inside the block (comparisons in tests and benchmarks)."""
    global _forced_torch
    before, _forced_torch = _forced_torch, True
    try:
        yield
    finally:
        _forced_torch = before


def torch_forced() -> bool:
    """Whether a `torch_forms()` block is running."""
    return _forced_torch


def forms() -> dict[str, tuple[str, str]]:
    """Op name -> (form in use on the CPU, reason)."""
    if _native is None:
        return dict.fromkeys(_registered, ("torch", f"no native build: {_missing}"))
    if _forced_torch:
        return dict.fromkeys(_registered, ("torch", "asked for by torch_forms()"))
    reason = f"best of {', '.join(_native.isas())} on this machine; float32 and bfloat16"
    return dict.fromkeys(_registered, (f"native {_native.isa()}", reason))


def built() -> bool:
    """Whether there are native kernels."""
    return _native is not None


def takes(x: Tensor) -> bool:
    """Whether a native kernel serves this tensor now."""
    return (_native is not None and not _forced_torch and x.dtype in DTYPES and x.device.type == "cpu"
            and x.numel() > 0)


def _on_cpu(op: Any, torch_form: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated kernel as the CPU form of `op`; its first tensor decides between the two forms."""

    def register(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def choose(first: Tensor, *rest: Any) -> Any:
            return kernel(first, *rest) if takes(first) else torch_form(first, *rest)

        _registered.append(op._name)
        if _native is not None:
            op.register_kernel("cpu")(choose)
        return kernel

    return register


def event_product(spikes: Tensor, table: Tensor, by_columns: bool = False, threshold: float = math.nan) -> Tensor:
    """spikes (R, M) @ table (M, N), or table (R, N)ᵀ @ spikes, by gathering what is active.

    With a threshold the first stands for what is at least that: 1[spikes >= threshold].
    """
    rows, columns = spikes.shape[1 if by_columns else 0], table.shape[1]
    out = torch.empty((columns, rows) if by_columns else (rows, columns), dtype=spikes.dtype)
    _native.event_product(*_contiguous(spikes, table), out, by_columns, threshold, torch.get_num_threads())
    return out


def active_share(spikes: Tensor, threshold: float = math.nan) -> float:
    """Share of the entries of spikes (R, M), R > 0, that `event_product` would take for active, by 256 rows or so."""
    step = max(1, len(spikes) // 256)
    return _native.count_active(spikes.contiguous(), step, threshold) / (-(-len(spikes) // step) * spikes.shape[1])


def _new(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(x.shape, dtype=dtype or x.dtype)


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [x.contiguous() for x in tensors]


@_on_cpu(lif.lif_forward, lif.lif_forward_torch)
def lif_forward(
    x: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor, alpha: float, clamp: float, gradient: str
) -> tuple[Tensor, Tensor, Tensor]:
    s, v, r = _new(x), _new(x), _new(r0)
    _native.lif_forward(*_contiguous(x, r0, leak, threshold), s, v, r, clamp, torch.get_num_threads())
    return s, v, r


@_on_cpu(lif.lif_backward, lif.lif_backward_torch)
def lif_backward(
    grad_s: Tensor, grad_r: Tensor, v: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor,
    alpha: float, clamp: float, gradient: str, learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x, grad_r0 = _new(v), _new(r0)
    grad_leak, grad_threshold = _new(r0, torch.float32), _new(r0, torch.float32)
    inputs = _contiguous(grad_s, grad_r, v, r0, leak, threshold)
    _native.lif_backward(*inputs, grad_x, grad_r0, grad_leak, grad_threshold, alpha, clamp, gradient, learned,
                         torch.get_num_threads())
    return grad_x, grad_r0, grad_leak.sum(0).to(leak.dtype), grad_threshold.sum(0).to(threshold.dtype)


def _rates(rate: Tensor, h0: Tensor) -> Tensor:
    """One decay rate per channel: (H, K) from (H,)."""
    return rate[:, None].expand(h0.shape[1:])


@_on_cpu(decay.decay_forward, decay.decay_forward_torch)
def decay_forward(u: Tensor, rate: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    h, last = _new(u), _new(h0)
    _native.decay_forward(*_contiguous(u, _rates(rate, h0), h0), h, last, torch.get_num_threads())
    return h, last


@_on_cpu(decay.decay_backward, decay.decay_backward_torch)
def decay_backward(
    grad_h: Tensor, grad_last: Tensor, u: Tensor, h: Tensor, rate: Tensor, h0: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_u, grad_rate, grad_h0 = _new(u), _new(h0), _new(h0)
    _native.decay_backward(*_contiguous(grad_h, grad_last, u, h, _rates(rate, h0), h0), grad_u, grad_rate, grad_h0,
                           torch.get_num_threads())
    return grad_u, grad_rate.sum((0, 2)), grad_h0


@_on_cpu(blended, blend_backward_torch)
def blend_backward(grad: Tensor, a: Tensor, b: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_a, grad_b = _new(a), _new(b)
    sums = torch.empty(-(-a.numel() // _PIECE))
    flat = (x.view(-1) for x in (*_contiguous(grad, a, b), grad_a, grad_b))
    _native.blend_backward(*flat, float(share), sums, torch.get_num_threads())
    return grad_a, grad_b, sums.sum().to(share.dtype).view(share.shape)


@_on_cpu(conv.conv_forward, conv.conv_forward_torch)
def conv_forward(x: Tensor, taps: Tensor, tail: Tensor) -> Tensor:
    y = _new(x)
    _native.conv_forward(*_contiguous(x, taps, tail), y, torch.get_num_threads())
    return y


@_on_cpu(conv.conv_backward, conv.conv_backward_torch)
def conv_backward(grad: Tensor, x: Tensor, taps: Tensor, tail: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_tail = _new(x), _new(tail)
    grad_taps = torch.empty(x.shape[0], *taps.shape)
    _native.conv_backward(*_contiguous(grad, x, taps, tail), grad_x, grad_taps, grad_tail, torch.get_num_threads())
    return grad_x, grad_taps.sum(0).to(taps.dtype), grad_tail


@_on_cpu(spiking.spike_forward, spiking.spike_forward_torch)
def spike_forward(v: Tensor, threshold: Tensor, alpha: float, code: str, levels: int, cut: float) -> Tensor:
    if (level := spiking.channel_levels(v, threshold)) is None:
        return spiking.spike_forward_torch(v, threshold, alpha, code, levels, cut)
    s = _new(v)
    _native.spike_forward(v.contiguous().view(-1), level, spiking.number(code), alpha, levels, cut, s.view(-1),
                          torch.get_num_threads())
    return s


@_on_cpu(spiking.spike_backward, spiking.spike_backward_torch)
def spike_backward(
    grad: Tensor, v: Tensor, threshold: Tensor, alpha: float, code: str, levels: int, cut: float
) -> Tensor:
    if (level := spiking.channel_levels(v, threshold)) is None:
        return spiking.spike_backward_torch(grad, v, threshold, alpha, code, levels, cut)
    grad, v = _contiguous(grad, v)
    grad_v = _new(v)
    _native.spike_backward(grad.view(-1), v.view(-1), level, spiking.number(code), alpha, levels, cut, grad_v.view(-1),
                           torch.get_num_threads())
    return grad_v


def spike_slope_(grad: Tensor, v: Tensor, threshold: Tensor, alpha: float, cut: float = math.inf) -> Tensor:
    """Multiply `grad` by the surrogate of v, both contiguous, at one threshold."""
    level = threshold.reshape(1).to(v.dtype)
    _native.spike_backward(grad.view(-1), v.view(-1), level, spiking.number("binary"), alpha, spiking.LEVELS, cut,
                           grad.view(-1), torch.get_num_threads())
    return grad


@custom_op("symboliclight::window_attention", mutates_args=(), device_types="cpu")
def window_attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, anchor_k: Tensor, anchor_v: Tensor, anchor_gate: Tensor,
    position: Tensor, window: int,
) -> Tensor:
    """`ops.window_attention` in its native form, chosen there."""
    out = _new(q)
    _native.window_forward(*_contiguous(q, k, v, gate, anchor_k, anchor_v, anchor_gate, position), out, window,
                           torch.get_num_threads())
    return out


@window_attention.register_fake
def _(q, k, v, gate, anchor_k, anchor_v, anchor_gate, position, window):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape)


@custom_op("symboliclight::window_attention_backward", mutates_args=(), device_types="cpu")
def window_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, anchor_k: Tensor, anchor_v: Tensor,
    anchor_gate: Tensor, position: Tensor, window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, anchor_k, anchor_v."""
    grads = _new(q), _new(k), _new(v), _new(anchor_k), _new(anchor_v)
    inputs = _contiguous(grad, q, k, v, gate, anchor_k, anchor_v, anchor_gate, position)
    _native.window_backward(*inputs, *grads, window, torch.get_num_threads())
    return grads


@window_backward.register_fake
def _(grad, q, k, v, gate, anchor_k, anchor_v, anchor_gate, position, window):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (q, k, v, anchor_k, anchor_v))


def _save_window(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_window(ctx, grad):  # type: ignore[no-untyped-def]
    q, k, v, anchor_k, anchor_v = window_backward(grad, *ctx.saved_tensors, ctx.window)
    return q, k, v, None, anchor_k, anchor_v, None, None, None


window_attention.register_autograd(_differentiate_window, setup_context=_save_window)


@_on_cpu(dropping.dropout_forward, dropping.dropout_torch)
def dropout_forward(x: Tensor, p: float, seed: int) -> Tensor:
    y = _new(x)
    _native.dropout(x.contiguous().view(-1), seed, dropping.limit(p), 1 / (1 - p), y.view(-1), torch.get_num_threads())
    return y


@_on_cpu(rotary.rope_forward, rotary.rope_torch)
def rope_forward(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    y, rows = _new(x), x.shape[:-2].numel()
    cos, sin = (t.expand(*x.shape[:-2], t.shape[-1]).reshape(rows, -1).float() for t in (cos, sin))
    _native.rope(x.contiguous().view(rows, *x.shape[-2:]), *_contiguous(cos, sin), sign, y.view(rows, *x.shape[-2:]),
                 torch.get_num_threads())
    return y


def softmax_loss(logits: Tensor, targets: Tensor, scale: Tensor, z_loss: float, wanted: bool) -> Tensor:
    """Sums of scale · nll and scale · lse² over the rows of `logits` (N, V), which become their gradient if wanted."""
    sums = torch.empty(len(logits), 2)
    _native.softmax_loss(logits, *_contiguous(targets, scale), z_loss, wanted, sums, torch.get_num_threads())
    return sums.sum(0)
