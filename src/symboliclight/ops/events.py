"""Linear map of binary inputs: the sum of the weight columns whose input spiked.

    y = Σ_{i : s_i = 1} W[:, i]

On a CPU the native form gathers those columns where few enough are active; otherwise it is the dense product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op

from symboliclight.ops import native

MIN_ROWS = 64  # below, turning the weight costs more than gathering saves


def event_linear_loop(spikes: Tensor, weight: Tensor) -> Tensor:
    """The specification of `event_linear`: gather and add, one vector at a time."""
    flat = spikes.reshape(-1, spikes.shape[-1])
    rows = [weight[:, s.nonzero()[:, 0]].sum(1) for s in flat]
    return torch.stack(rows).view(*spikes.shape[:-1], weight.shape[0])


def event_linear(spikes: Tensor, weight: Tensor) -> Tensor:
    """y (..., N) of spikes (..., M), 0/1, and weight (N, M); any other input is the plain product."""
    dtype, device = spikes.dtype, spikes.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    rows = spikes.numel() // max(spikes.shape[-1], 1)
    if rows >= MIN_ROWS and native.takes(spikes) and break_even(dtype) > 0:
        return _event_linear(spikes.to(dtype).reshape(rows, -1), weight.to(dtype)).view(*spikes.shape[:-1], -1)
    return F.linear(spikes, weight)


def break_even(dtype: torch.dtype) -> float:
    """Active fraction up to which gathering beats the dense product on a CPU; 0 means never.

    float32 by results/bench-ops.json, bfloat16 by results/zen4/bench-ops.json: AMX multiplies dense bfloat16 so fast
    that no sparsity below 99% pays.
    """
    if dtype not in native.DTYPES or (dtype == torch.bfloat16 and native.has_isa("amx")):
        return 0.0
    return 0.06 if dtype == torch.bfloat16 else 0.12


def _sparse(spikes: Tensor) -> bool:
    """Whether gathering pays for spikes (R, M), by a sample of the rows."""
    sample = spikes[:: max(1, len(spikes) // 256)]
    return int(sample.count_nonzero()) <= break_even(spikes.dtype) * sample.numel()


@custom_op("symboliclight::event_linear", mutates_args=(), device_types="cpu")
def _event_linear(spikes: Tensor, weight: Tensor) -> Tensor:
    """(R, N) of spikes (R, M) and weight (N, M)."""
    return native.event_product(spikes, weight.t()) if _sparse(spikes) else F.linear(spikes, weight)


@_event_linear.register_fake
def _(spikes: Tensor, weight: Tensor) -> Tensor:
    return spikes.new_empty(spikes.shape[0], weight.shape[0])


@custom_op("symboliclight::event_linear_weight_gradient", mutates_args=(), device_types="cpu")
def _weight_gradient(grad: Tensor, spikes: Tensor) -> Tensor:
    """(N, M) of grad (R, N) and spikes (R, M)."""
    if _sparse(spikes):
        return native.event_product(spikes, grad, by_columns=True).t().contiguous()
    return grad.t() @ spikes


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
