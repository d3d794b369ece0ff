"""Triton kernel of window attention for a single query a sequence: what writing text token by token needs.

One program holds the query of one head and reads its keys and values once, ROWS at a time, under a running maximum
(arXiv 1805.02867); the equations are those of `window.py`. It has no gradient.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Keys at one time; their loads run ahead. A sequence has few heads, so each program brings many warps.
LAUNCH: dict[str, Any] = {"ROWS": 64, "STAGES": 3, "num_warps": 8}


@triton.jit
def _read(score_of, keys, values, place, at, seen, most, total, out):
    """Goes on with the keys and values at `place` (N,), those that are `seen`."""
    k = tl.load(keys + place[:, None] + at[None, :], mask=seen[:, None], other=0.0).to(tl.float32)
    v = tl.load(values + place[:, None] + at[None, :], mask=seen[:, None], other=0.0).to(tl.float32)
    score = tl.where(seen, tl.sum(k * score_of[None, :], 1), -float("inf"))
    higher = tl.maximum(most, tl.max(score, 0))
    share, kept = tl.exp(score - higher), tl.exp(most - higher)
    return higher, total * kept + tl.sum(share, 0), out * kept + tl.sum(v * share[:, None], 0)


@triton.jit
def _window_token(
    q, k, v, gate, anchor_k, anchor_v, anchor_gate, position, y, S, A, H, window, scale,
    K: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, ANCHORS: tl.constexpr,
):
    b, h, at = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, K)
    query = tl.load(q + (b * H + h) * K + at).to(tl.float32) * scale
    most, total, out = -1e30, 0.0, tl.zeros([K], tl.float32)
    for first in tl.range(0, S, ROWS, num_stages=STAGES):
        j = first + tl.arange(0, ROWS)
        seen = (tl.load(gate + b * S + j, mask=j < S, other=0) != 0) | (j == S - 1)
        most, total, out = _read(query, k, v, ((b * S + j) * H + h) * K, at, seen, most, total, out)
    if ANCHORS > 0:
        a = tl.arange(0, ANCHORS)
        gone = (a < A) & (tl.load(position + b) - a > window)
        seen = gone & (tl.load(anchor_gate + b * A + a, mask=a < A, other=0) != 0)
        most, total, out = _read(query, anchor_k, anchor_v, ((b * A + a) * H + h) * K, at, seen, most, total, out)
    out = tl.where(tl.load(gate + b * S + S - 1) != 0, out / total, 0.0)
    tl.store(y + (b * H + h) * K + at, out.to(y.dtype.element_ty))


def window_token(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, anchor_k: Tensor, anchor_v: Tensor, anchor_gate: Tensor,
    position: Tensor, window: int,
) -> Tensor:
    """`ops.window_attention` of q (B, 1, H, K)."""
    B, _, H, K = q.shape
    q, k, v, anchor_k, anchor_v = (x.contiguous() for x in (q, k, v, anchor_k, anchor_v))
    gate, anchor_gate = (x.contiguous().view(torch.uint8) for x in (gate, anchor_gate))
    A, y = anchor_k.shape[1], torch.empty_like(q)
    _window_token[(B, H)](q, k, v, gate, anchor_k, anchor_v, anchor_gate, position, y, k.shape[1], A, H, window,
                          K**-0.5, K=K, ANCHORS=triton.next_power_of_2(A) if A else 0, **LAUNCH)
    return y
