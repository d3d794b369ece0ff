"""Short causal convolution over the tokens, each channel by itself.

    y_t = Σ_{j < n} w_j · x_{t-j}        n taps a channel, x before the sequence is 0
"""

import torch
from torch import Tensor


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
    T, n = x.shape[1], len(taps)
    whole = torch.cat([tail.to(x.dtype), x], 1)
    y = x * taps[0].to(x.dtype)
    for j in range(1, n):
        y = torch.addcmul(y, whole[:, n - 1 - j : n - 1 - j + T], taps[j].to(x.dtype))
    return y, whole[:, T:]
