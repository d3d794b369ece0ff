"""Native CPU kernels (csrc/) for the registered ops; everything else runs the torch forms.

Native are float32 and bfloat16 on the CPU, outside `torch_forms()`. The module `symboliclight._native` is built by `pip install`;
without it the torch forms run, and one warning says so.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from symboliclight.ops import decay, lif
from symboliclight.ops import spike as spiking

try:
    from symboliclight import _native
except ImportError as error:  # a broken build is told apart from a missing one by its message
    _native, _missing = None, str(error)
    warnings.warn(
        f"symboliclight has no native kernels ({error}): training on CPU will be slow; "
        "install a C++ compiler and reinstall symboliclight", RuntimeWarning, stacklevel=2)
else:
    _native.set_dtypes(torch.float32, torch.bfloat16)

NATIVE_DTYPES = (torch.float32, torch.bfloat16)
_forced_torch = False
_registered: list[str] = []


@contextmanager
def torch_forms() -> Iterator[None]:
    """Run the torch form of every op inside the block (comparisons in tests and benchmarks)."""
    global _forced_torch
    before, _forced_torch = _forced_torch, True
    try:
        yield
    finally:
        _forced_torch = before


def forms() -> dict[str, tuple[str, str]]:
    """Op name -> (form in use on the CPU, reason)."""
    if _native is None:
        return dict.fromkeys(_registered, ("torch", f"no native build: {_missing}"))
    if _forced_torch:
        return dict.fromkeys(_registered, ("torch", "asked for by torch_forms()"))
    reason = f"best of {', '.join(_native.isas())} on this machine; float32 and bfloat16"
    return dict.fromkeys(_registered, (f"native {_native.isa()}", reason))


def _on_cpu(op: Any, torch_form: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated kernel as the CPU form of `op`; its first tensor decides between the two forms."""

    def register(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def choose(first: Tensor, *rest: Any) -> Any:
            if _forced_torch or first.dtype not in NATIVE_DTYPES or first.numel() == 0:
                return torch_form(first, *rest)
            return kernel(first, *rest)

        _registered.append(op._name)
        if _native is not None:
            op.register_kernel("cpu")(choose)
        return kernel

    return register


def _new(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(x.shape, dtype=dtype or x.dtype)


@_on_cpu(lif.lif_forward, lif.lif_forward_torch)
def lif_forward(
    x: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor, alpha: float, clamp: float, gradient: str
) -> tuple[Tensor, Tensor, Tensor]:
    s, v, r = _new(x), _new(x), _new(r0)
    _native.lif_forward(x.contiguous(), r0.contiguous(), leak.contiguous(), threshold.contiguous(), s, v, r, clamp,
                        torch.get_num_threads())
    return s, v, r


@_on_cpu(lif.lif_backward, lif.lif_backward_torch)
def lif_backward(
    grad_s: Tensor, grad_r: Tensor, v: Tensor, r0: Tensor, leak: Tensor, threshold: Tensor,
    alpha: float, clamp: float, gradient: str, learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x, grad_r0 = _new(v), _new(r0)
    grad_leak, grad_threshold = _new(r0, torch.float32), _new(r0, torch.float32)
    _native.lif_backward(
        grad_s.contiguous(), grad_r.contiguous(), v.contiguous(), r0.contiguous(), leak.contiguous(),
        threshold.contiguous(), grad_x, grad_r0, grad_leak, grad_threshold, alpha, clamp, gradient, learned,
        torch.get_num_threads())
    return grad_x, grad_r0, grad_leak.sum(0).to(leak.dtype), grad_threshold.sum(0).to(threshold.dtype)


def _rates(rate: Tensor, h0: Tensor) -> Tensor:
    """One decay rate per channel: (H, K) from (H,)."""
    return rate[:, None].expand(h0.shape[1:]).contiguous()


@_on_cpu(decay.decay_forward, decay.decay_forward_torch)
def decay_forward(u: Tensor, rate: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    h, last = _new(u), _new(h0)
    _native.decay_forward(u.contiguous(), _rates(rate, h0), h0.contiguous(), h, last, torch.get_num_threads())
    return h, last


@_on_cpu(decay.decay_backward, decay.decay_backward_torch)
def decay_backward(
    grad_h: Tensor, grad_last: Tensor, u: Tensor, h: Tensor, rate: Tensor, h0: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_u, grad_rate, grad_h0 = _new(u), _new(h0), _new(h0)
    _native.decay_backward(
        grad_h.contiguous(), grad_last.contiguous(), u.contiguous(), h.contiguous(), _rates(rate, h0), h0.contiguous(),
        grad_u, grad_rate, grad_h0, torch.get_num_threads())
    return grad_u, grad_rate.sum((0, 2)), grad_h0


def _level(v: Tensor, threshold: Tensor) -> Tensor:
    """The threshold as one value, or as one value for each channel of the last dimension."""
    if threshold.numel() == 1:
        return threshold.reshape(1)
    return threshold.expand(v.shape[-1:]).contiguous()


@_on_cpu(spiking.spike_forward, spiking.spike_forward_torch)
def spike_forward(v: Tensor, threshold: Tensor, alpha: float) -> Tensor:
    if threshold.numel() > 1 and threshold.dim() > 1:
        return spiking.spike_forward_torch(v, threshold, alpha)
    s = _new(v)
    _native.spike_forward(v.reshape(-1), _level(v, threshold), s.view(-1), torch.get_num_threads())
    return s


@_on_cpu(spiking.spike_backward, spiking.spike_backward_torch)
def spike_backward(grad: Tensor, v: Tensor, threshold: Tensor, alpha: float) -> Tensor:
    if threshold.numel() > 1 and threshold.dim() > 1:
        return spiking.spike_backward_torch(grad, v, threshold, alpha)
    grad_v = _new(v)
    _native.spike_backward(grad.reshape(-1), v.reshape(-1), _level(v, threshold), grad_v.view(-1), alpha,
                           torch.get_num_threads())
    return grad_v
