"""Gated window attention with anchors, the short precise path of the mixer (DESIGN section 1, "attention").

Query i sees key j iff  j <= i  and  (i - j <= W  or  j < A)  and  g_j = 1;  scale K^-1/2.
A query with g_i = 0 gets 0; any other sees at least itself. i and j are positions in the sequence.

A call holds T queries and the S = R + T latest keys, R of them from the state; anchors come as A keys of their own and
count for a query only once they have left its window, so no key is seen twice. The torch form takes blocks of queries,
each over the pieces of keys that its window touches: pieces rather than slices, whose gradients would cost T each.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from symboliclight.ops import cuda, native
from symboliclight.ops.flex import flex_window_attention

BLOCK = 128  # fewest queries a block
BLOCK_CUDA = 512  # on a GPU, where masked scores cost less than launches: 4 times fewer of these


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
            if not gate[b, R + i]:
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
    form = window_attention_torch
    if cuda.infers(q):
        form = cuda.window_inference
    elif native.takes(q):
        form = native.window_attention
    elif cuda.flexes(q):
        form = flex_window_attention
    return form(q, k, v, gate, anchor_k, anchor_v, anchor_gate, position, window)


def window_attention_torch(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, anchor_k: Tensor, anchor_v: Tensor, anchor_gate: Tensor,
    position: Tensor, window: int,
) -> Tensor:
    """`window_attention` in blocks of queries, each against the keys of its window at once."""
    R, A = k.shape[1] - q.shape[1], anchor_k.shape[1]
    blocks = q.split(max(BLOCK_CUDA if q.is_cuda else BLOCK, window // 2), 1)
    size = blocks[0].shape[1]
    pieces = [R, *(block.shape[1] for block in blocks)]  # the keys of the state, then those of each block
    k_pieces, v_pieces = k.split(pieces, 1), v.split(pieces, 1)
    columns = torch.arange(k.shape[1], device=q.device).split(pieces)
    outputs = []
    for n, block in enumerate(blocks):
        near = slice(max(n + 1 - -(-window // size), 0), n + 2)  # the pieces this block can see
        i, j = columns[n + 1], torch.cat(columns[near])
        lag = i[:, None] - j
        seen = ((lag >= 0) & (lag <= window) & gate[:, None, j]) | (lag == 0)  # lag 0: no softmax over nothing
        gone = (position[:, None] + i - R)[..., None] - torch.arange(A, device=q.device) > window
        mask = torch.cat([seen, gone & anchor_gate[:, None]], -1)
        keys, values = torch.cat([*k_pieces[near], anchor_k], 1), torch.cat([*v_pieces[near], anchor_v], 1)
        out = F.scaled_dot_product_attention(
            block.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask[:, None]
        ).transpose(1, 2)
        outputs.append(out.masked_fill(~gate[:, i, None, None], 0))
    return torch.cat(outputs, 1)
