"""Feed-forward block with spiking hidden units (DESIGN section 1, "ffn")."""

import torch.nn.functional as F
from torch import Tensor, nn

from symboliclight.core.config import ModelConfig
from symboliclight.model.encoder import (
    Spike,
    apply,
    branch_end,
    hidden_spike,
    reader,
    stream_norm,
    stream_spike,
    watched,
)
from symboliclight.ops import dropout, event_linear, pairs, spiking_pair


class FeedForward(nn.Module):
    """c <- norm(c + W_down f),  f = 1[W_up c >= θ] or another code of spikes, or GELU(W_up c) as the control.

    With `residual="pre"` c <- c + W_down f, and W_up reads what the norm of the mixer makes of c; with `spike_fed` it
    reads spikes of that.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.spike = stream_spike(config) if config.spike_fed else nn.Identity()
        self.up = reader(config, config.d_ff)
        self.activation = hidden_spike(config) if config.ffn == "spike" else nn.GELU()
        self.down = branch_end(config, config.d_ff)
        self.dropout = config.dropout
        self.norm = stream_norm(config)
        self.pre = config.residual == "pre"

    def forward(self, c: Tensor, n: Tensor | None = None) -> Tensor:
        """c (B, T, D), and n where that is not what is read -> c (B, T, D)."""
        x = self.spike(c if n is None else n)
        c = c + (self._paired(x) if self._pairs(x) else self._plain(x))
        return c if self.pre else self.norm(c)

    def _plain(self, x: Tensor) -> Tensor:
        f = dropout(self.activation(self.up(x)), self.dropout, self.training)
        linear = event_linear if isinstance(self.activation, Spike) else F.linear
        return apply(linear, self.down, f)

    def _pairs(self, x: Tensor) -> bool:
        """Whether both matrices can be one op: plain spikes, and nobody drops units or watches them."""
        return (isinstance(self.activation, Spike) and self.activation.plain
                and type(self.up) is type(self.down) is nn.Linear and not (self.dropout and self.training)
                and not watched(self.up, self.activation, self.down) and pairs(x))

    def _paired(self, x: Tensor) -> Tensor:
        assert isinstance(self.activation, Spike)
        threshold, alpha = self.activation.threshold, self.activation.alpha
        return spiking_pair(x, self.up.weight, self.down.weight, threshold, alpha)
