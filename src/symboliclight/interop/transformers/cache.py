"""The bounded state of running sequences as the cache that `generate()` hands from step to step."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from symboliclight.model.state import State


class SymbolicLightCache(Cache):
    """A `State` and the number of columns read, left padding included. Its size does not grow with the text.

    States are never changed in place, so `copy()` costs nothing: read a prompt once and start any number of
    continuations from copies of its cache.
    """

    def __init__(self, state: State | None = None, length: int = 0) -> None:
        super().__init__(layers=[])
        self.state = state  # None before the first token
        self.length = length

    def copy(self) -> "SymbolicLightCache":
        """A fork: both go on independently."""
        return SymbolicLightCache(self.state, self.length)

    def advance(self, state: State, tokens: int) -> None:
        """Take the state after `tokens` more columns."""
        self.state, self.length = state, self.length + tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns read so far."""
        return self.length

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.length = None, 0

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows of `indices` (N,), in that order, repeats allowed."""
        if self.state is not None:
            self.state = self.state.rows(indices.to(self.state.position.device))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows of the beams that survived."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, copies side by side."""
        if self.state is not None:
            self.batch_select_indices(torch.arange(self.batch_size).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: a bounded state cannot be wound back; keep a `copy()` from before instead."""
        if tokens_to_remove:
            raise ValueError("a SymbolicLight cache cannot be cropped; keep cache.copy() from before and go on from it")

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: there are no growing keys and values here."""
        raise ValueError("a SymbolicLight cache holds a state, not keys and values; use `advance`")

    @property
    def batch_size(self) -> int:
        """Rows, or -1 before the first token."""
        return -1 if self.state is None else len(self.state.position)

    @property
    def is_initialized(self) -> bool:
        """Whether anything was read."""
        return self.state is not None

    @property
    def is_compileable(self) -> bool:
        """No: the ring of keys grows during the first tokens."""
        return False

    @property
    def is_croppable(self) -> bool:
        """No."""
        return False

    def __len__(self) -> int:
        return 0 if self.state is None else len(self.state.layers)

    def __repr__(self) -> str:
        return f"SymbolicLightCache(rows={self.batch_size}, length={self.length})"
