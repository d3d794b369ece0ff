"""Feed-forward block with spiking hidden units (DESIGN section 1, "ffn")."""

import torch.nn.functional as F
from torch import Tensor, nn

from symboliclight.config import ModelConfig
from symboliclight.model.encoder import Spike, branch_end, stream_norm
from symboliclight.ops import dropout, event_linear


class FeedForward(nn.Module):
    """c <- norm(c + W_down f),  f = 1[W_up c >= θ], or GELU(W_up c) as the control."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.activation = Spike(config.v_threshold, config.surrogate_alpha) if config.ffn == "spike" else nn.GELU()
        self.down = branch_end(config, config.d_ff)
        self.dropout = config.dropout
        self.norm = stream_norm(config)

    def forward(self, c: Tensor) -> Tensor:
        """c (B, T, D) -> c (B, T, D)."""
        f = dropout(self.activation(self.up(c)), self.dropout, self.training)
        linear = event_linear if isinstance(self.activation, Spike) else F.linear
        return self.norm(c + linear(f, self.down.weight))
