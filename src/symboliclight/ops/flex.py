"""Window attention through FlexAttention: the CUDA form, which skips every block of keys that no query of a block sees.

The anchors are put before the keys. Which blocks of columns a block of queries reads depends on lengths and W alone;
gates, anchor gates and positions decide inside the blocks.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128  # queries, and columns, a block


def flex_window_attention(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, anchor_k: Tensor, anchor_v: Tensor, anchor_gate: Tensor,
    position: Tensor, window: int,
) -> Tensor:
    """`ops.window_attention` for CUDA tensors; on the CPU it runs eager and forward only, as a check."""
    T = q.shape[1]
    mask = block_mask(T, gate, anchor_gate, position, window)
    keys, values = torch.cat([anchor_k, k], 1), torch.cat([anchor_v, v], 1)
    attend = _compiled() if q.is_cuda else flex_attention
    out = attend(q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), block_mask=mask).transpose(1, 2)
    return out.masked_fill(~gate[:, gate.shape[1] - T :, None, None], 0)


def block_mask(queries: int, gate: Tensor, anchor_gate: Tensor, position: Tensor, window: int) -> BlockMask:
    """What each query sees of the columns (anchors, then keys); linear in T, unlike `create_block_mask`."""
    A = anchor_gate.shape[1]
    own = A + gate.shape[1] - queries  # column of the first query's own key
    open_, position = torch.cat([anchor_gate, gate], 1).int(), position.int()  # words: bytes are slower to fetch

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        lag = i + own - j
        near = (j >= A) & (lag >= 0) & (lag <= window)
        gone = (j < A) & (position[b] + i - j > window)
        return ((near | gone) & (open_[b, j] > 0)) | (lag == 0)  # lag 0: no softmax over nothing

    first = torch.arange(0, queries, BLOCK, device=gate.device)[:, None] + own
    block = torch.arange(-(-open_.shape[1] // BLOCK), device=gate.device)
    seen = (block >= (first - window) // BLOCK) & (block <= (first + BLOCK - 1) // BLOCK)
    seen |= block < -(-A // BLOCK)
    order = seen.int().argsort(dim=-1, descending=True, stable=True).int()
    return BlockMask.from_kv_blocks(
        seen.sum(-1, dtype=torch.int32)[None, None], order[None, None], BLOCK_SIZE=BLOCK, mask_mod=visible,
        seq_lengths=(queries, open_.shape[1]))


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
