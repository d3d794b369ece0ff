"""The bounded state of running sequences: everything the past leaves behind, in tensors of fixed size.

v is the encoder membrane after reset; a layer keeps its decay state h, the last W keys, values and gate bits in
time order (gate off where nothing was seen yet), the A anchors, and what a convolution still needs of the last tokens.
`position` counts tokens already read and is negative while a row still reads its left padding: tokens at negative
positions are absent and leave no trace.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from symboliclight.core.config import ModelConfig


@dataclass
class LayerState:
    """One mixer's past; `h` is None without the decay path, keys and values without the attention path."""

    h: Tensor | None = None  # (B, H, K) float32
    k: Tensor | None = None  # (B, R, H, K), R <= W; W after any call
    v: Tensor | None = None  # (B, R, H, K)
    gate: Tensor | None = None  # (B, R) bool
    anchor_k: Tensor | None = None  # (B, A, H, K)
    anchor_v: Tensor | None = None  # (B, A, H, K)
    anchor_gate: Tensor | None = None  # (B, A) bool
    u_tail: Tensor | None = None  # (B, conv - 1, D), as are the two others: the last inputs of each convolution
    k_tail: Tensor | None = None
    v_tail: Tensor | None = None

    def skip(self, steps: int) -> "LayerState":
        """This layer after `steps` tokens that never reached it (early exit): unseen keys, memory as it was."""
        moved = {name: torch.cat([x, x.new_zeros(len(x), steps, *x.shape[2:])], 1)[:, -x.shape[1] :]
                 for name in ("k", "v", "gate", "u_tail", "k_tail", "v_tail") if (x := getattr(self, name)) is not None}
        return replace(self, **moved)


@dataclass
class State:
    """Batched state of B sequences."""

    position: Tensor  # (B,) int64
    v: Tensor  # (B, D)
    layers: list[LayerState]

    def map(self, function: Callable[[Tensor], Tensor]) -> "State":
        """A new state with `function` applied to every tensor; all of them have B in front."""
        return State.join([self], lambda tensors: function(tensors[0]))

    def rows(self, index: Tensor | Sequence[int]) -> "State":
        """The state of the given rows, in that order, repeats allowed (beam search, prompt reuse)."""
        chosen = torch.as_tensor(index, device=self.position.device)
        return self.map(lambda x: x.index_select(0, chosen))

    def copy(self) -> "State":
        """An independent copy: a fork of the sequences."""
        return self.map(torch.clone)

    __copy__ = copy  # a recorded step writes into the state that it is given (model/graph.py)

    @staticmethod
    def batch(states: Sequence["State"]) -> "State":
        """One state of many sequences from several states of the same model."""
        return State.join(states, torch.cat)

    @staticmethod
    def join(states: Sequence["State"], function: Callable[[list[Tensor]], Tensor]) -> "State":
        """Combine equal fields of several states."""
        flat = [s.tensors() for s in states]
        return State.from_tensors({name: function([f[name] for f in flat]) for name in flat[0]}, len(states[0].layers))

    def tensors(self) -> dict[str, Tensor]:
        """Flat name -> tensor, ready for safetensors."""
        found = {"position": self.position, "v": self.v}
        for i, layer in enumerate(self.layers):
            found |= {f"layers.{i}.{f.name}": x for f in fields(layer) if (x := getattr(layer, f.name)) is not None}
        return found

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], n_layers: int) -> "State":
        """The inverse of `tensors`."""
        layers = [LayerState(**{f.name: tensors.get(f"layers.{i}.{f.name}") for f in fields(LayerState)})
                  for i in range(n_layers)]
        return State(tensors["position"], tensors["v"], layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(x.nbytes for x in self.tensors().values())


def initial_state(config: ModelConfig, padding: Tensor, dtype: torch.dtype) -> State:
    """The state before the first token of rows with `padding` (B,) absent tokens on the left."""
    B, (H, K), A, W = len(padding), (config.n_heads, config.head_dim), config.n_anchors, config.window

    def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.zeros(B, *shape, dtype=dtype, device=padding.device)

    wide = torch.promote_types(dtype, torch.float32)
    layers = []
    for _ in range(config.n_layers):
        layer = LayerState(h=zeros(H, K, dtype=wide) if config.paths != "attention" else None)
        if config.paths != "decay":
            layer.k, layer.v, layer.gate = zeros(W, H, K), zeros(W, H, K), zeros(W, dtype=torch.bool)
            layer.anchor_k, layer.anchor_v = zeros(A, H, K), zeros(A, H, K)
            layer.anchor_gate = zeros(A, dtype=torch.bool)
        if config.conv:
            tails = {"u": config.paths != "attention", "k": config.paths != "decay", "v": config.paths != "decay"}
            for name in [name for name, there in tails.items() if there]:
                setattr(layer, f"{name}_tail", zeros(config.conv - 1, config.d_model))
        layers.append(layer)
    return State(-padding.long(), zeros(config.d_model, dtype=wide), layers)
