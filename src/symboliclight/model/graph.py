"""Single tokens through a CUDA graph: one launch a token instead of hundreds, most of the time of decoding one by one.

The kernels are those of `SymbolicLight.features` with the same inputs. The state of a graph has tensors of its own,
which a replay reads and overwrites; it is recorded anew when the number of sequences changes.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from symboliclight.model.lm import SymbolicLight
from symboliclight.model.state import State
from symboliclight.model.step import inference, last_logits, padded_state

WARM_UP = 3  # passes before recording: libraries choose and load their kernels


class Recorded:
    """A model on a CUDA device as sampling calls it; tokens that come one by one are replayed.

    Calls take the state over that they are given: it may be overwritten by the next.
    """

    def __init__(self, model: SymbolicLight) -> None:
        self.config, self._model = model.config, model
        self._step: _Step | None = None

    def initial_state(self, batch_size: int, padding: np.ndarray | None = None) -> State:
        """The state before the first token; `padding` (B,) counts absent tokens on the left of each row."""
        return padded_state(self._model, np.zeros(batch_size, np.int64) if padding is None else padding)

    def last(self, tokens: np.ndarray, state: State | None = None, top: int = 0) -> tuple[np.ndarray, State]:
        """Read tokens (B, T) int64; the logits after the last one, (B, V) float32, and the state. `top` is not used."""
        if state is None or tokens.shape[1] > 1:
            return last_logits(self._model, tokens, state)
        logits, state = self.step(torch.from_numpy(tokens).to(state.position.device), state)
        return logits.float().cpu().numpy(), state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens (B, 1) int64 -> logits (B, V), valid until the next call, and the state; nothing leaves the device."""
        with inference(self._model):
            if self._step is None or state is not self._step.state:
                if bool((state.position < 0).any()):  # a row in its left padding needs masks that a graph leaves out
                    c, _, state = self._model.features(tokens, state)
                    return self._model.head(c[:, -1]), state
                if self._step is None or len(self._step.tokens) != len(tokens):
                    self._step = None  # its memory goes before the next one's comes
                    self._step = _Step(self._model, state)
                self._step.start(state)
            return self._step(tokens), self._step.state


class _Step:
    """The graph for one number of sequences, and the tensors that it reads and writes."""

    def __init__(self, model: SymbolicLight, state: State) -> None:
        device = state.position.device
        self.state = state.copy()
        self.tokens = torch.zeros(len(state.position), 1, dtype=torch.long, device=device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._pass(model)
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._pass(model)

    def start(self, state: State) -> None:
        """Go on from another state of as many sequences."""
        given, kinds = state.tensors(), dict[torch.dtype, tuple[list[Tensor], list[Tensor]]]()
        for name, x in self.state.tensors().items():
            to, source = kinds.setdefault(x.dtype, ([], []))
            to.append(x)
            source.append(given[name])
        for to, source in kinds.values():  # all of a kind in one kernel
            torch._foreach_copy_(to, source)

    def __call__(self, tokens: Tensor) -> Tensor:
        self.tokens.copy_(tokens)
        self._graph.replay()
        return self._logits

    def _pass(self, model: SymbolicLight) -> Tensor:
        c, _, state = model.features(self.tokens, self.state)
        logits = model.head(c[:, -1])
        self.start(state)
        return logits


def recorded(model: Any) -> Any:
    """The model as sampling calls it: `Recorded` where that can be, on CUDA without an early exit, else itself."""
    if (isinstance(model, SymbolicLight) and model.config.exit_entropy is None
            and next(model.parameters()).device.type == "cuda"):
        return Recorded(model)
    return model
