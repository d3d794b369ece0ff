"""Linear map of spikes: the sum of the weight columns whose input spiked, times its value where it has one.

    y = Σ_{i : s_i ≠ 0} s_i W[:, i]

On a CPU the native form gathers those columns where few enough are active; otherwise it is the dense product. How few
is measured on the processor at hand (`break_even`).
"""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from symboliclight.ops import native

MIN_ROWS = 64  # below, turning the weight costs more than gathering saves
# Active shares that a break-even may be, each twice the next, so that two measurements of one machine seldom differ.
SHARES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
DTYPES = ("bfloat16", "float32")  # that have a break-even
_measured: dict[torch.dtype, float] = {}  # dtype -> break-even


def event_linear_loop(spikes: Tensor, weight: Tensor) -> Tensor:
    """The specification of `event_linear`: gather and add, one vector at a time."""
    flat = spikes.reshape(-1, spikes.shape[-1])
    rows = [(weight[:, at] * s[at]).sum(1) for s in flat for at in [s.nonzero()[:, 0]]]
    return torch.stack(rows).view(*spikes.shape[:-1], weight.shape[0])


def event_linear(spikes: Tensor, weight: Tensor) -> Tensor:
    """y (..., N) of spikes (..., M), binary or valued, and weight (N, M); faster than the product where most are 0."""
    dtype, device = spikes.dtype, spikes.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    rows = spikes.numel() // max(spikes.shape[-1], 1)
    if rows >= MIN_ROWS and native.takes(spikes) and break_even(dtype) > 0:
        return _event_linear(spikes.to(dtype).reshape(rows, -1), weight.to(dtype)).view(*spikes.shape[:-1], -1)
    return F.linear(spikes, weight)


@torch.compiler.assume_constant_result
def break_even(dtype: torch.dtype) -> float:
    """Active share up to which gathering beats the dense product on this CPU, one of `SHARES`; 0 means never.

    Measured once for each dtype, in a tenth of a second; it stays when the number of threads changes, on which results
    do not depend. The two forms sum in another order, so a run that is to reach the same bits when it is resumed keeps
    what it began with: `break_evens`, `set_break_evens`.
    """
    if dtype not in native.DTYPES or not native.built():
        return 0.0
    if dtype not in _measured:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            _measured[dtype] = _measure(dtype)
    return _measured[dtype]


def break_evens() -> dict[str, float]:
    """What this process goes by, measured now if it was not before: name of the dtype -> share."""
    return {name: break_even(getattr(torch, name)) for name in DTYPES}


def set_break_evens(shares: Mapping[str, float]) -> None:
    """Go by these shares from now on."""
    for name, share in shares.items():
        _measured[getattr(torch, name)] = share


def _measure(dtype: torch.dtype) -> float:
    """The largest of `SHARES` at which gathering wins, forward and gradient of the weight together."""
    generator = torch.Generator().manual_seed(0)
    uniform, grad = torch.rand(1024, 1024, generator=generator), torch.rand(1024, 192, generator=generator).to(dtype)
    weight = grad.t().contiguous()

    def gather(s: Tensor) -> object:
        return native.event_product(s, weight.t()), native.event_product(s, grad, by_columns=True)

    def dense(s: Tensor) -> object:
        return F.linear(s, weight), grad.t() @ s

    for share in SHARES:
        spikes = (uniform < share).to(dtype)
        if _faster(partial(gather, spikes), partial(dense, spikes)):
            return share
    return 0.0


def _faster(one: Callable[[], object], other: Callable[[], object]) -> bool:
    """Whether the best time of the first is the better one; they take turns."""
    best, begin = [math.inf, math.inf], time.perf_counter()
    for _ in range(12):
        for i, run in enumerate((one, other)):
            start = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - start)
        if time.perf_counter() - begin > 0.05:
            break
    return best[0] < best[1]


def gathers(spikes: Tensor, threshold: float = math.nan) -> bool:
    """Whether gathering pays for spikes (R, M), or for what spikes at a threshold, by a sample of the rows."""
    return native.active_share(spikes, threshold) <= break_even(spikes.dtype)


@custom_op("symboliclight::event_linear", mutates_args=(), device_types="cpu")
def _event_linear(spikes: Tensor, weight: Tensor) -> Tensor:
    """(R, N) of spikes (R, M) and weight (N, M)."""
    return native.event_product(spikes, weight.t()) if gathers(spikes) else F.linear(spikes, weight)


@_event_linear.register_fake
def _(spikes: Tensor, weight: Tensor) -> Tensor:
    return spikes.new_empty(spikes.shape[0], weight.shape[0])


@custom_op("symboliclight::event_linear_weight_gradient", mutates_args=(), device_types="cpu")
def _weight_gradient(grad: Tensor, spikes: Tensor) -> Tensor:
    """(N, M) of grad (R, N) and spikes (R, M)."""
    return native.event_product(spikes, grad, by_columns=True) if gathers(spikes) else grad.t() @ spikes


@_weight_gradient.register_fake
def _(grad: Tensor, spikes: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[1], spikes.shape[1])


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):  # type: ignore[no-untyped-def]
    spikes, weight = ctx.saved_tensors
    return (grad @ weight if ctx.needs_input_grad[0] else None,
            _weight_gradient(grad, spikes) if ctx.needs_input_grad[1] else None)


_event_linear.register_autograd(_differentiate, setup_context=_save)
