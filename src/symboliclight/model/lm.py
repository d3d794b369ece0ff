"""SymbolicLight V1 on one page: encoder -> [mixer -> ffn -> spikes] x n_layers -> head (DESIGN section 1)."""

import torch
from torch import Tensor, nn

from symboliclight.core.config import ModelConfig
from symboliclight.core.errors import InputError
from symboliclight.model.encoder import Encoder, stream_spike
from symboliclight.model.ffn import FeedForward
from symboliclight.model.head import Head
from symboliclight.model.mixer import Mixer
from symboliclight.model.state import LayerState, State, initial_state
from symboliclight.ops.rope import rope_tables


class Block(nn.Module):
    """Mixer, feed-forward, and the spikes that feed the next block."""

    def __init__(self, config: ModelConfig, last: bool) -> None:
        super().__init__()
        self.mixer = Mixer(config)
        self.ffn = FeedForward(config)
        self.spike = stream_spike(config, fixed=last)  # nothing reads the last spikes, so nothing teaches them


class SymbolicLight(nn.Module):
    """Spike-gated dual-path language model: `forward(tokens, state) -> (logits, state)`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.blocks = nn.ModuleList(Block(config, i == config.n_layers - 1) for i in range(config.n_layers))
        self.head = Head(config, self.encoder.embedding)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=config.init_std * getattr(module, "init_scale", 1.0))

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """tokens (B, T) int64 -> logits (B, T, V) and the state after them; whole == chunked == one by one."""
        c, _, state = self.features(tokens, state)
        return self.head(c), state

    def features(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, list[Tensor], State]:
        """The stream (B, T, D) that the head reads, the streams after `config.aux_layers`, and the state."""
        B, T = tokens.shape
        if not T:
            raise InputError("there are no tokens to read; give at least one, such as the bos")
        config = self.config
        present = None if state is None else _present(state.position, T)
        state = self._fresh(B) if state is None else state
        s, c, membrane = self.encoder(tokens, state.v, None if present is None else present[..., None])
        at = state.position[:, None] + torch.arange(T, device=tokens.device)
        tables = rope_tables(at, config.head_dim, config.rope_base, c.dtype)
        n, pre = c, config.residual == "pre"  # what is read of the stream c
        layers: list[LayerState] = []
        aux: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            gate = _any(s, config.stream_code) if config.gate else torch.ones_like(tokens, dtype=torch.bool)
            if present is not None:
                gate, s = gate & present, s * present[..., None]
                n = n * present[..., None] if config.conv else n  # a convolution would carry absent tokens on
            c, layer = block.mixer(s, c, gate, tables, state.position, state.layers[i], n)
            c = block.ffn(c, block.mixer.norm(c) if pre else c)
            n = block.ffn.norm(c) if pre else c
            s = block.spike(n)
            layers.append(layer)
            if i in config.aux_layers:
                aux.append(n)
            if config.exit_entropy is not None and not self.training and self._certain(n):
                layers += [past.skip(T) for past in state.layers[i + 1 :]]
                break
        return n, aux, State(state.position + T, membrane, layers)

    def initial_state(self, batch_size: int, padding: Tensor | None = None) -> State:
        """The state before the first token; `padding` (B,) counts absent tokens on the left of each row."""
        weight = self.encoder.embedding.weight
        padding = torch.zeros(batch_size, dtype=torch.long, device=weight.device) if padding is None else padding
        return initial_state(self.config, padding.to(weight.device), weight.dtype)

    def _fresh(self, batch_size: int) -> State:
        """Initial state with an empty ring: a first call need not carry W unseen keys along."""
        state = self.initial_state(batch_size)
        for layer in state.layers:
            if layer.k is not None and layer.v is not None and layer.gate is not None:
                layer.k, layer.v, layer.gate = layer.k[:, :0], layer.v[:, :0], layer.gate[:, :0]
        return state

    def _certain(self, c: Tensor) -> bool:
        """Entropy early exit: every row's next-token entropy is below `config.exit_entropy` nats."""
        log_p = self.head(c[:, -1]).float().log_softmax(-1)
        return bool((-(log_p.exp() * log_p).sum(-1) < self.config.exit_entropy).all())


def _any(s: Tensor, code: str) -> Tensor:
    """(B, T) bool: whether a token spikes at all; only ternary spikes may be negative."""
    return (s != 0).any(-1) if code == "ternary" else s.amax(-1) > 0


def _present(position: Tensor, length: int) -> Tensor | None:
    """(B, T) mask of real tokens, or None where no row is still in its left padding.

    An exported graph always masks, a CUDA graph never: it is recorded for rows that are past their padding.
    """
    if position.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    if not torch.compiler.is_exporting() and not bool((position < 0).any()):
        return None
    return position[:, None] + torch.arange(length, device=position.device) >= 0
