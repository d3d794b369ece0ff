"""Rotary position embedding, rotate-half form, per head (arXiv 2104.09864).

The pair (x[i], x[i + K/2]) turns by position · base^(-2i/K) radians; the gradient turns back by the same angle.
"""

import torch
from torch import Tensor
from torch.library import custom_op


def rope_tables(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine (..., K/2) of integer `positions` (...,), float32 or, for float64 models, float64."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    inverse = base ** (-torch.arange(0, head_dim, 2, dtype=wide, device=positions.device) / head_dim)
    angle = positions[..., None] * inverse
    return angle.cos(), angle.sin()


def rope(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate x (B, T, H, K) by the tables of its positions (B, T, K/2); same shape and dtype."""
    return rope_forward(x, *tables, 1.0)


@custom_op("symboliclight::rope", mutates_args=())
def rope_forward(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    return rope_torch(x, cos, sin, sign)


def rope_torch(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    """The torch form; sign -1 turns back."""
    cos, sin = cos[..., None, :], sin[..., None, :] * sign
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


@rope_forward.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, sign: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, cos, sin, ctx.sign = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx, grad):  # type: ignore[no-untyped-def]
    return rope_forward(grad, *ctx.saved_tensors, -ctx.sign), None, None, None


rope_forward.register_autograd(_differentiate, setup_context=_save)
