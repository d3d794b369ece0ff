"""Short causal convolution over the tokens, each channel by itself.

    y_t = Σ_{j < n} w_j · x_{t-j}        n taps a channel

Its adjoint looks ahead: ∂L/∂x_t = Σ_j w_j · ∂L/∂y_{t+j}, and ∂L/∂w_j = Σ_t ∂L/∂y_t · x_{t-j}.
"""

import torch
from torch import Tensor
from torch.library import custom_op


def causal_conv_loop(x: Tensor, taps: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """The specification of `causal_conv`: one token at a time."""
    seen, rows = list(tail.to(x.dtype).unbind(1)), []
    for x_t in x.unbind(1):
        seen.append(x_t)
        rows.append(sum(w.to(x.dtype) * seen[-1 - j] for j, w in enumerate(taps)))
    return torch.stack(rows, 1), torch.stack(seen[len(seen) - tail.shape[1] :], 1)


def causal_conv(x: Tensor, taps: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve along T.

    Args: x (B, T, D); taps w (n, D), n >= 2, the first for the token itself; tail (B, n - 1, D), the inputs before x.
    Returns: y (B, T, D) and the last n - 1 inputs, both in the dtype of x.
    """
    tail = tail.to(x.dtype)
    behind = tail.shape[1]
    last = x[:, -behind:] if x.shape[1] >= behind else torch.cat([tail[:, x.shape[1] :], x], 1)
    return conv_forward(x, taps.to(x.dtype), tail), last


def conv_forward_torch(x: Tensor, taps: Tensor, tail: Tensor) -> Tensor:
    T, n = x.shape[1], len(taps)
    whole = torch.cat([tail, x], 1)
    y = x * taps[0]
    for j in range(1, n):
        y = torch.addcmul(y, whole[:, n - 1 - j : n - 1 - j + T], taps[j])
    return y


conv_forward = custom_op("symboliclight::causal_conv", mutates_args=())(conv_forward_torch)


@conv_forward.register_fake
def _(x: Tensor, taps: Tensor, tail: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def conv_backward_torch(grad: Tensor, x: Tensor, taps: Tensor, tail: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (B, T, D), taps (n, D), tail (B, n - 1, D)."""
    T, n = x.shape[1], len(taps)
    whole = torch.cat([tail, x], 1)
    grad_whole, grad_taps = torch.zeros_like(whole), torch.empty_like(taps)
    for j in range(n):
        behind = slice(n - 1 - j, n - 1 - j + T)
        grad_whole[:, behind].addcmul_(grad, taps[j])
        grad_taps[j] = (grad * whole[:, behind]).sum((0, 1))
    return grad_whole[:, n - 1 :].contiguous(), grad_taps, grad_whole[:, : n - 1].contiguous()


conv_backward = custom_op("symboliclight::causal_conv_backward", mutates_args=())(conv_backward_torch)


@conv_backward.register_fake
def _(grad: Tensor, x: Tensor, taps: Tensor, tail: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, taps, tail))  # type: ignore[return-value]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):  # type: ignore[no-untyped-def]
    return conv_backward(grad, *ctx.saved_tensors)


conv_forward.register_autograd(_differentiate, setup_context=_save)
