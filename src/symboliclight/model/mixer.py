"""Dual-path mixer: exponential-decay memory and spike-gated window attention (DESIGN section 1, "Block")."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from symboliclight.core.config import ModelConfig
from symboliclight.model.encoder import EventLinear, apply, branch_end, reader, stream_norm, watched
from symboliclight.model.state import LayerState
from symboliclight.ops import (
    blend,
    causal_conv,
    decay_scan,
    dropout,
    event_linear,
    gated_scan,
    linears,
    rope,
    window_attention,
)


class Mixer(nn.Module):
    """c <- norm(c + W_out o),  o = a · attention(c) + (1 - a) · decay(s), or the one path that is on.

    With `residual="pre"` c <- c + W_out o, and attention reads the normalised stream n; with `spike_fed` it reads s.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        if config.paths != "attention":
            self.tcam = nn.Linear(D, D, bias=False)
            self.decay_raw = nn.Parameter(torch.full((D if config.decay == "channel" else config.n_heads,), 3.0))
        if config.paths != "attention" and config.decay == "input":
            self.decay_gate = EventLinear(D, config.n_heads, bias=False)
        if config.paths != "decay":
            self.q, self.k, self.v = reader(config, D), reader(config, D), reader(config, D)
        for name in written(config):
            taps = torch.zeros(config.conv, D)
            taps[0] = 1  # at first every token is itself
            self.register_parameter(f"conv_{name}", nn.Parameter(taps))
        if config.paths == "both":
            self.attn_gate = nn.Parameter(torch.zeros(1))
        self.out = branch_end(config, D)
        self.norm = stream_norm(config)

    def forward(
        self, s: Tensor, c: Tensor, gate: Tensor, tables: tuple[Tensor, Tensor], position: Tensor, past: LayerState,
        n: Tensor | None = None,
    ) -> tuple[Tensor, LayerState]:
        """s, c (B, T, D), gate (B, T) bool, position (B,) of the first token, and n (B, T, D) where c is not what is
        read -> c (B, T, D) and the new past."""
        paths, new = self.config.paths, LayerState()
        decay = self.remember(s, past, new) if paths != "attention" else None
        read = s if self.config.spike_fed else c if n is None else n
        attention = self.attend(read, gate, tables, position, past, new) if paths != "decay" else None
        return self.join(c, decay, attention), new

    def remember(self, s: Tensor, past: LayerState, new: LayerState) -> Tensor:
        """The decay path: s (B, T, D) -> (B, T, H, K); fills its part of `new`."""
        assert past.h is not None
        u = self._convolve("u", apply(event_linear, self.tcam, s), past, new)
        if self.config.decay == "channel":  # heads of width 1
            h, last = decay_scan(u[..., None], self.decay_raw.sigmoid(), past.h.flatten(1)[..., None])
            new.h = last.view(past.h.shape)
            return h.view(self._heads(s))
        u = u.view(self._heads(s))
        if self.config.decay == "input":
            h, new.h = gated_scan(u, self.decay_raw + self.decay_gate(s).to(past.h.dtype), past.h)
        else:
            h, new.h = decay_scan(u, self.decay_raw.sigmoid(), past.h)
        return h

    def attend(
        self, c: Tensor, gate: Tensor, tables: tuple[Tensor, Tensor], position: Tensor, past: LayerState,
        new: LayerState,
    ) -> Tensor:
        """The attention path: c (B, T, D) -> (B, T, H, K); fills its part of `new`."""
        heads = self._heads(c)
        q, k, v = self._read(c)
        k, v = self._convolve("k", k, past, new), self._convolve("v", v, past, new)
        q, k = rope(q.view(heads), tables), rope(k.view(heads), tables)
        return self._window(q, k, v.view(heads), gate, position, past, new)

    def _read(self, c: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values (B, T, D) of what the attention path reads."""
        readers = self.q, self.k, self.v
        if all(type(linear) is nn.Linear for linear in readers) and not watched(*readers):
            return linears(c, [linear.weight for linear in readers])
        return [linear(c) for linear in readers]

    def join(self, c: Tensor, decay: Tensor | None, attention: Tensor | None) -> Tensor:
        """Mix, project, add to the residual stream c (B, T, D) and, unless it grows, normalise."""
        if decay is not None and attention is not None:
            o = blend(decay, attention, self.attn_gate.sigmoid())
        else:
            o = decay if attention is None else attention  # type: ignore[assignment]
        c = c + self.out(dropout(o.reshape(c.shape), self.config.dropout, self.training))
        return c if self.config.residual == "pre" else self.norm(c)

    def _convolve(self, name: str, x: Tensor, past: LayerState, new: LayerState) -> Tensor:
        """x (B, T, D) with its last tokens mixed in, where the configuration asks for it; fills its part of `new`."""
        if not self.config.conv:
            return x
        y, tail = causal_conv(x, self.get_parameter(f"conv_{name}"), getattr(past, f"{name}_tail"))
        setattr(new, f"{name}_tail", tail)
        return y

    def _heads(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape[:-1], self.config.n_heads, self.config.head_dim)

    def _window(
        self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, position: Tensor, past: LayerState, new: LayerState
    ) -> Tensor:
        """Window attention over past and present keys; fills the attention part of `new`."""
        assert past.k is not None and past.v is not None and past.gate is not None
        ahead = torch.arange(self.config.n_anchors, device=k.device) - position[:, None]  # (B, A) of each anchor in k
        here = (ahead >= 0) & (ahead < k.shape[1])
        k, new.anchor_k = _anchors(past.anchor_k, k, ahead, here)
        v, new.anchor_v = _anchors(past.anchor_v, v, ahead, here)
        gate, new.anchor_gate = _anchors(past.anchor_gate, gate, ahead, here)
        keys, values, open_ = _after(past.k, k), _after(past.v, v), _after(past.gate, gate)
        W = self.config.window
        new.k, new.v, new.gate = _last(keys, W), _last(values, W), _last(open_, W)
        return window_attention(q, keys, values, open_, new.anchor_k, new.anchor_v, new.anchor_gate, position, W)


def written(config: ModelConfig) -> tuple[str, ...]:
    """What a mixer writes to its memories and a convolution passes over: input u of the decay, keys and values."""
    paths = {"both": ("u", "k", "v"), "decay": ("u",), "attention": ("k", "v")}
    return paths[config.paths] if config.conv else ()


def _anchors(old: Tensor | None, x: Tensor, ahead: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, T, ...) and its anchor rows (B, A, ...): at `ahead` (B, A) where they lie `here` in it, else the old."""
    assert old is not None
    wide = (..., *[None] * (x.dim() - 2))
    rows = x
    if x.shape[1] > 1:
        index = ahead.clamp(0, x.shape[1] - 1)[wide].expand(-1, -1, *x.shape[2:])
        joined = x.requires_grad and not torch.compiler.is_compiling()
        x, rows = _WithRows.apply(x, index) if joined else (x, x.gather(1, index))
    return x, torch.where(here[wide], rows, old.to(x.dtype))


class _WithRows(torch.autograd.Function):
    """x (B, T, ...) and its rows at an index of `gather`, whose gradient is added to x's: autograd would add a second
    tensor as large as x that is 0 nearly everywhere."""

    @staticmethod
    def forward(ctx, x, index):  # type: ignore[override]
        ctx.save_for_backward(index)
        return x.view_as(x), x.gather(1, index)

    @staticmethod
    def backward(ctx, grad, grad_rows):  # type: ignore[override]
        (index,) = ctx.saved_tensors
        return grad.scatter_add(1, index, grad_rows), None


def _after(past: Tensor, x: Tensor) -> Tensor:
    """past (B, R, ...) and x (B, T, ...) along T; a first call has no past to copy x behind."""
    return torch.cat([past.to(x.dtype), x], 1) if past.shape[1] else x


def _last(x: Tensor, window: int) -> Tensor:
    """The last `window` entries along T, padded on the left with zeros (gate off)."""
    missing = window - x.shape[1]
    if missing > 0:
        return torch.cat([x.new_zeros(len(x), missing, *x.shape[2:]), x], 1)
    return x[:, x.shape[1] - window :]
