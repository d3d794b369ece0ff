"""Exponential-decay scan whose rate is chosen by each token.

    h_t = d_t · h_{t-1} + (1 - d_t) · u_t,   d_t = sigmoid(z_t)        one logit z_t per head and token

Within a chunk, with L_t = Σ_{i <= t} ln d_i, this is h_t = e^{L_t} h_0 + Σ_{j <= t} e^{L_t - L_j} (1 - d_j) u_j: a
triangular matrix per head (the chunked form of state space duality, arXiv 2405.21060). Chunks follow one another.
Logits rather than rates, because ∂/∂d of a logarithm is unbounded at d = 0, and ∂/∂z is not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # tokens
CHUNK_CUDA = 256  # where larger products are cheaper than more launches


def gated_scan_loop(u: Tensor, logits: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """The specification of `gated_scan`: one step a token."""
    h, states = h0, []
    decay = logits.to(h0.dtype).sigmoid()[..., None]
    for u_t, d_t in zip(u.to(h0.dtype).unbind(1), decay.unbind(1), strict=True):
        h = d_t * h + (1 - d_t) * u_t
        states.append(h)
    return torch.stack(states, 1).to(u.dtype), h


def gated_scan(u: Tensor, logits: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
    """Run the decay along T, linear in T.

    Args: u (B, T, H, K) input; logits z (B, T, H); h0 (B, H, K) state, float32 or float64.
    Returns: h (B, T, H, K) in the dtype of u, and the last state (B, H, K) in the dtype of h0.
    """
    h, states = h0, []
    with torch.autocast(u.device.type, enabled=False):  # sums over the whole past stay in the dtype of the state
        chunk = CHUNK_CUDA if u.is_cuda else CHUNK
        for x, z in zip(u.split(chunk, 1), logits.to(h0.dtype).split(chunk, 1), strict=True):
            log = F.logsigmoid(z).cumsum(1).transpose(1, 2)  # (B, H, C)
            x = (x.to(h0.dtype) * (-z).sigmoid()[..., None]).transpose(1, 2)  # (B, H, C, K)
            later = torch.ones(log.shape[-1], log.shape[-1], dtype=torch.bool, device=log.device).triu(1)
            kept = (log[..., None] - log[..., None, :]).masked_fill(later, -torch.inf).exp()
            y = kept @ x + log[..., None].exp() * h[:, :, None]
            h = y[:, :, -1]
            states.append(y.transpose(1, 2))
    return torch.cat(states, 1).to(u.dtype), h
