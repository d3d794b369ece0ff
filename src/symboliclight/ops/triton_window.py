"""Triton kernels of window attention without a gradient: what reading and writing text needs.

A program holds queries of one head, a single one or a tile of neighbours, and reads the keys and values that they see
once, a tile at a time, under a running maximum (arXiv 1805.02867). The equations are those of `window.py`.
"""

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Keys at one time; their loads run ahead. A single query has few programs, one a head, so each brings many warps.
LAUNCH_ONE: dict[str, Any] = {"ROWS": 64, "STAGES": 3, "num_warps": 8}
LAUNCH: dict[str, Any] = {"ROWS": 64, "COLUMNS": 64, "num_warps": 4}
LEAST = 16  # columns of a matrix product
INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))  # the interpreter multiplies no bfloat16 matrices


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


@triton.jit
def _read_tile(query, keys, values, place, at, real, seen, most, total, out):
    """As `_read` for a tile of queries (M, K) and of keys (N,); `seen` (M, N)."""
    k = tl.load(keys + place[:, None] + at[None, :], mask=real[:, None], other=0.0).to(query.dtype)
    v = tl.load(values + place[:, None] + at[None, :], mask=real[:, None], other=0.0).to(query.dtype)
    score = tl.where(seen, tl.dot(query, tl.trans(k), input_precision="ieee"), -float("inf"))
    higher = tl.maximum(most, tl.max(score, 1))
    share, kept = tl.exp(score - higher[:, None]), tl.exp(most - higher)
    out = out * kept[:, None] + tl.dot(share.to(v.dtype), v, input_precision="ieee")
    return higher, total * kept + tl.sum(share, 1), out


@triton.jit
def _window_rows(
    q, k, v, gate, anchor_k, anchor_v, anchor_gate, position, y, T, S, A, H, window, scale,
    K: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ANCHORS: tl.constexpr,
):
    b, h, at = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H, tl.arange(0, K)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = ((b * T + i) * H + h) * K
    query = tl.load(q + here[:, None] + at[None, :], mask=(i < T)[:, None], other=0.0)
    query = (query.to(tl.float32) * scale).to(tl.float32 if WIDE else query.dtype)
    own = i + S - T  # columns of the queries' own keys
    most, total = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, K], tl.float32)
    begin = tl.maximum(tl.program_id(0) * ROWS + S - T - window, 0) // COLUMNS * COLUMNS
    for first in range(begin, tl.minimum(tl.program_id(0) * ROWS + S - T + ROWS, S), COLUMNS):
        j = first + tl.arange(0, COLUMNS)
        open_ = tl.load(gate + b * S + j, mask=j < S, other=0) != 0
        lag = own[:, None] - j[None, :]
        seen = (lag >= 0) & (lag <= window) & open_[None, :] | (lag == 0)
        most, total, out = _read_tile(query, k, v, ((b * S + j) * H + h) * K, at, j < S, seen, most, total, out)
    if ANCHORS > 0:
        a = tl.arange(0, ANCHORS)
        open_ = tl.load(anchor_gate + b * A + a, mask=a < A, other=0) != 0
        seen = ((tl.load(position + b) + i)[:, None] - a[None, :] > window) & open_[None, :]
        place = ((b * A + a) * H + h) * K
        most, total, out = _read_tile(query, anchor_k, anchor_v, place, at, a < A, seen, most, total, out)
    there = tl.load(gate + b * S + own, mask=i < T, other=0) != 0
    out = tl.where(there[:, None], out / tl.maximum(total, 1e-30)[:, None], 0.0)  # rows beyond T: 0 / 0
    tl.store(y + here[:, None] + at[None, :], out.to(y.dtype.element_ty), mask=(i < T)[:, None])


def window_inference(
    q: Tensor, k: Tensor, v: Tensor, gate: Tensor, anchor_k: Tensor, anchor_v: Tensor, anchor_gate: Tensor,
    position: Tensor, window: int,
) -> Tensor:
    """`ops.window_attention` for head widths that are powers of 2 from 16 on."""
    B, T, H, K = q.shape
    q, k, v, anchor_k, anchor_v = (x.contiguous() for x in (q, k, v, anchor_k, anchor_v))
    gate, anchor_gate = (x.contiguous().view(torch.uint8) for x in (gate, anchor_gate))
    S, A, y = k.shape[1], anchor_k.shape[1], torch.empty_like(q)
    shared = (q, k, v, gate, anchor_k, anchor_v, anchor_gate, position, y)
    anchors = triton.next_power_of_2(A) if A else 0
    if T == 1:
        _window_token[(B, H)](*shared, S, A, H, window, K**-0.5, K=K, ANCHORS=anchors, **LAUNCH_ONE)
    else:
        _window_rows[(triton.cdiv(T, LAUNCH["ROWS"]), B * H)](
            *shared, T, S, A, H, window, K**-0.5, K=K, WIDE=q.dtype == torch.float32 or INTERPRETED,
            ANCHORS=max(anchors, LEAST) if A else 0, **LAUNCH)
    return y
