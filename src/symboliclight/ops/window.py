"""Gated window attention with anchors, the short precise path of the mixer (DESIGN section 1, "attention").

Query i sees key j iff  j <= i  and  (i - j <= W  or  j < A)  and  g_j = 1;  scale K^-1/2.
A query with g_i = 0, or one that sees no key, gets 0. i and j are positions in the sequence.

A call holds T queries and the S = R + T latest keys, R of them from the state; anchors come as A keys of their own and
count for a query only once they have left its window, so no key is seen twice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def window_attention_loop(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, anchor_k: Tensor, anchor_v: Tensor, anchor_gate: Tensor,
    position: Tensor, window: int,
) -> Tensor:
    """The specification of `window_attention`: one query at a time, over the keys it sees."""
    B, T, H, K = q.shape
    R = k.shape[1] - T
    rows = []
    for b in range(B):
        for i in range(T):
            first = max(0, R + i - window)
            keys, values, open_ = k[b, first : R + i + 1], v[b, first : R + i + 1], gate[b, first : R + i + 1]
            gone = [a for a in range(anchor_k.shape[1]) if int(position[b]) + i - a > window]
            keys = torch.cat([keys[open_], anchor_k[b, gone][anchor_gate[b, gone]]])
            values = torch.cat([values[open_], anchor_v[b, gone][anchor_gate[b, gone]]])
            if not gate[b, R + i] or len(keys) == 0:
                rows.append(torch.zeros_like(q[b, i]))
                continue
            weights = (torch.einsum("hk,jhk->hj", q[b, i], keys) * K**-0.5).softmax(-1)
            rows.append(torch.einsum("hj,jhk->hk", weights, values))
    return torch.stack(rows).view(B, T, H, K)


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, anchor_k: Tensor, anchor_v: Tensor, anchor_gate: Tensor,
    position: Tensor, window: int,
) -> Tensor:
    """Attend within the window and to the anchors; time and memory linear in T.

    Args: q (B, T, H, K); k, v (B, R + T, H, K) in time order, the last T belong to the queries, R <= W;
        gate (B, R + T) bool; anchor_k, anchor_v (B, A, H, K) and anchor_gate (B, A) bool: the keys of positions
        0..A-1 (gate off where not yet seen); position (B,) int64 of the first query, negative under left padding;
        window W in tokens.
    Returns: (B, T, H, K) in the dtype of q.
    """
    B, T, H, K = q.shape
    A = anchor_k.shape[1]
    C = min(T, max(window // 2, 32))  # queries a block: each block reads W + C keys
    n = -(-T // C)
    L = window + C
    left, right = window - (k.shape[1] - T), n * C - T
    blocks = F.pad(q, (0, 0, 0, 0, 0, right)).view(B * n, C, H, K)
    keys = _windows(F.pad(k, (0, 0, 0, 0, left, right)), L, C)
    values = _windows(F.pad(v, (0, 0, 0, 0, left, right)), L, C)
    seen = F.pad(gate, (left, right)).unfold(1, L, C)  # (B, n, L)

    i, j = torch.arange(C, device=q.device)[:, None], torch.arange(L, device=q.device)
    band = (j >= i) & (j <= i + window)  # column j of a block is i - j + window tokens before row i
    mask = (seen[:, :, None] & band).view(B * n, C, L)
    at = position[:, None] + torch.arange(n * C, device=q.device)
    gone = at.view(B, n, C, 1) - torch.arange(A, device=q.device) > window
    mask = torch.cat([mask, (gone & anchor_gate[:, None, None]).view(B * n, C, A)], -1)
    keys = torch.cat([keys, anchor_k.repeat_interleave(n, 0)], 1)
    values = torch.cat([values, anchor_v.repeat_interleave(n, 0)], 1)

    active = mask.any(-1) & seen[:, :, window:].reshape(B * n, C)
    mask = mask | ~active[..., None]  # a softmax over nothing is NaN, in its gradient too
    out = F.scaled_dot_product_attention(
        blocks.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask[:, None]
    ).transpose(1, 2)
    return out.masked_fill(~active[..., None, None], 0).reshape(B, n * C, H, K)[:, :T]


def _windows(x: Tensor, length: int, step: int) -> Tensor:
    """Overlapping windows of x (B, S, H, K) along S as (B · n, length, H, K)."""
    return x.unfold(1, length, step).permute(0, 1, 4, 2, 3).flatten(0, 1)
