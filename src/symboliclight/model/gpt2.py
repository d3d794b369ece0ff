"""The GPT-2 baseline from `transformers`, behind the same seam as SymbolicLight.

Pre-norm blocks, learned absolute positions, gelu_new in its fused form, tied input and output embeddings, SDPA
attention. Parameter names are those of `transformers.GPT2LMHeadModel`, so its checkpoints load as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from symboliclight.core.config import ModelConfig
from symboliclight.core.errors import InputError


@dataclass
class GPT2State:
    """Everything read so far by B sequences: S cached columns a row, of which the last `position` are real."""

    position: Tensor  # (B,) int64; negative while a row still reads its left padding
    layers: list[tuple[Tensor, Tensor]]  # keys and values (B, H, S, K) of each layer

    def map(self, function: Callable[[Tensor], Tensor]) -> "GPT2State":
        """A new state with `function` applied to every tensor; all of them have B in front."""
        return GPT2State(function(self.position), [(function(k), function(v)) for k, v in self.layers])

    def rows(self, index: Tensor | Sequence[int]) -> "GPT2State":
        """The state of the given rows, in that order, repeats allowed."""
        chosen = torch.as_tensor(index, device=self.position.device)
        return self.map(lambda x: x.index_select(0, chosen))

    def copy(self) -> "GPT2State":
        """An independent copy: a fork of the sequences."""
        return self.map(torch.clone)

    __copy__ = copy

    @staticmethod
    def batch(states: Sequence["GPT2State"]) -> "GPT2State":
        """One state of many sequences; shorter caches are widened on the left with columns that nobody reads."""
        width = max(s.width for s in states)

        def cat(layer: int, part: int) -> Tensor:
            return torch.cat([F.pad(s.layers[layer][part], (0, 0, width - s.width, 0)) for s in states])

        layers = [(cat(i, 0), cat(i, 1)) for i in range(len(states[0].layers))]
        return GPT2State(torch.cat([s.position for s in states]), layers)

    def tensors(self) -> dict[str, Tensor]:
        """Flat name -> tensor, ready for safetensors."""
        keys = {f"layers.{i}.k": k for i, (k, _) in enumerate(self.layers)}
        return {"position": self.position} | keys | {f"layers.{i}.v": v for i, (_, v) in enumerate(self.layers)}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], n_layers: int) -> "GPT2State":
        """The inverse of `tensors`."""
        layers = [(tensors[f"layers.{i}.k"], tensors[f"layers.{i}.v"]) for i in range(n_layers)]
        return GPT2State(tensors["position"], layers)

    @property
    def width(self) -> int:
        """Cached columns S, padding included."""
        return self.layers[0][0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together; grows with every token."""
        return sum(x.nbytes for x in self.tensors().values())


@dataclass(frozen=True)
class TiedHead:
    """logits = E h with the input embedding E (V, D)."""

    weight: Tensor

    def terms(self, hidden: Tensor) -> tuple[list[Tensor], list[Tensor], None]:
        """Features, weights and bias as `ops.linear_cross_entropy` takes them."""
        return [hidden], [self.weight], None

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V)."""
        return F.linear(hidden, self.weight)


class GPT2(nn.Module):
    """`forward(tokens, state) -> (logits, state)`; reads at most `config.max_seq_len` tokens a sequence."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        try:
            from transformers import GPT2Config, GPT2Model
        except ImportError as error:
            raise InputError("GPT-2 baselines need transformers: pip install 'symboliclight[train]'") from error
        self.config = config
        self.context_limit = config.max_seq_len
        shape: dict[str, Any] = {
            "vocab_size": config.vocab_size, "n_positions": config.max_seq_len, "n_embd": config.d_model,
            "n_layer": config.n_layers, "n_head": config.n_heads, "n_inner": config.d_ff,
            "activation_function": "gelu_pytorch_tanh", "initializer_range": config.init_std,
            "attn_implementation": "sdpa", "bos_token_id": None, "eos_token_id": None,
            "embd_pdrop": config.dropout, "resid_pdrop": config.dropout, "attn_pdrop": config.dropout,
        }
        self.transformer = GPT2Model(GPT2Config(**shape))

    @property
    def head(self) -> TiedHead:
        """The output layer, made of the input embedding."""
        return TiedHead(self.transformer.wte.weight)

    def forward(self, tokens: Tensor, state: GPT2State | None = None) -> tuple[Tensor, GPT2State | None]:
        """tokens (B, T) int64 -> logits (B, T, V) and the state after them; whole == chunked == one by one."""
        hidden, _, state = self.features(tokens, state)
        return self.head(hidden), state

    def features(
        self, tokens: Tensor, state: GPT2State | None = None
    ) -> tuple[Tensor, list[Tensor], GPT2State | None]:
        """What the head reads (B, T, D), no auxiliary streams, and the state.

        A training pass that begins without a state keeps no cache and returns None for it. Raises `InputError`
        beyond `max_seq_len` tokens.
        """
        if not tokens.shape[1]:
            raise InputError("there are no tokens to read; give at least one, such as the bos")
        length = tokens.shape[1] + (0 if state is None else int(state.position.max()))
        if length > self.context_limit:
            raise InputError(f"GPT-2 reads at most {self.context_limit} tokens (model.max_seq_len), got {length}; "
                             "shorten the text or use a model with a longer context")
        if state is None and self.training:
            return self.transformer(tokens, use_cache=False).last_hidden_state, [], None
        state = self.initial_state(len(tokens)) if state is None else state
        cache = _cache(state)
        mask, positions = _padding(state, tokens.shape[1])
        hidden = self.transformer(
            tokens, past_key_values=cache, attention_mask=mask, position_ids=positions, use_cache=True
        ).last_hidden_state
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        return hidden, [], GPT2State(state.position + tokens.shape[1], layers)

    def initial_state(self, batch_size: int, padding: Tensor | None = None) -> GPT2State:
        """The state before the first token; `padding` (B,) counts absent tokens on the left of each row."""
        weight, c = self.transformer.wte.weight, self.config
        padding = torch.zeros(batch_size, dtype=torch.long) if padding is None else padding
        empty = weight.new_zeros(batch_size, c.n_heads, 0, c.head_dim)
        return GPT2State(-padding.long().to(weight.device), [(empty, empty)] * c.n_layers)


def _cache(state: GPT2State) -> Any:
    """The state as the DynamicCache that `transformers` reads and extends."""
    from transformers import DynamicCache

    cache = DynamicCache()
    if state.width:
        for i, (k, v) in enumerate(state.layers):
            cache.update(k, v, i)
    return cache


def _padding(state: GPT2State, length: int) -> tuple[Tensor | None, Tensor | None]:
    """Mask (B, S + T) of real columns and positions (B, T), or nothing where every column of every row is real."""
    if bool((state.position == state.width).all()):
        return None, None
    here = torch.arange(length, device=state.position.device)
    column = torch.arange(state.width + length, device=state.position.device)
    first = state.width - state.position[:, None]  # (B, 1): the column of each row's first real token
    return (column >= first).long(), (state.position[:, None] + here).clamp(min=0)
