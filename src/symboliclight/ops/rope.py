"""Rotary position embedding, rotate-half form, per head (arXiv 2104.09864)."""

import torch
from torch import Tensor


def rope_tables(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine (..., 1, head_dim / 2) of integer `positions` (...,), ready to broadcast over heads."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inverse = base ** (-torch.arange(0, head_dim, 2, dtype=wide, device=positions.device) / head_dim)
    angle = positions[..., None, None] * inverse
    return angle.cos(), angle.sin()


def rope(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x (B, T, H, K): the pair (x[i], x[i + K/2]) turns by position · base^(-2i/K) radians."""
    cos, sin = tables
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
