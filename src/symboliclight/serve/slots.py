"""The states of the texts that run, side by side as one call of the model wants them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from symboliclight.engine import Engine, State
from symboliclight.engine.aligned import lined
from symboliclight.generate.sampling import next_logits


class Slots:
    """States of any model behind the seam. Joining and leaving gather all of them anew."""

    def __init__(self) -> None:
        self._state: Any = None

    def join(self, state: Any) -> None:
        """Put the sequences of `state` behind the others."""
        self._state = state if self._state is None else type(state).batch([self._state, state])

    def keep(self, order: Sequence[int]) -> None:
        """Go on with the sequences at these places, in this order; the others leave.

        A place is not before the one that it moves to: what is last fills the holes.
        """
        self._state = self._state.rows(order) if order else None

    def row(self, place: int) -> Any:
        """The state of one sequence, a copy."""
        return self._state.rows([place])

    def advance(self, model: Any, tokens: np.ndarray, top: int) -> np.ndarray:
        """Read one token (B, 1) of every sequence; logits (B, V)."""
        logits, self._state = next_logits(model, tokens, self._state, top)
        return logits

    def trace(self, model: Engine, tokens: np.ndarray, top: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """As `advance`, and who spiked: site -> (B, 1, units). Only of the runtime."""
        logits, spikes, self._state = model.trace(tokens, self._state, top)
        return logits, spikes


class ArraySlots(Slots):
    """States of the runtime, which advances arrays in place: only what joins, or fills a hole, is copied."""

    def __init__(self, model: Engine, slots: int) -> None:
        self._arrays, self._count = model.initial_state(slots).arrays(), 0

    def join(self, state: State) -> None:
        joining = len(state.position)
        for name, array in state.arrays().items():
            self._arrays[name][self._count : self._count + joining] = array
        self._count += joining

    def keep(self, order: Sequence[int]) -> None:
        for array in self._arrays.values():
            for to, place in enumerate(order):
                if to != place:
                    array[to] = array[place]
        self._count = len(order)

    def row(self, place: int) -> State:
        return State(**{name: lined(array[place : place + 1]) for name, array in self._arrays.items()})

    def advance(self, model: Engine, tokens: np.ndarray, top: int) -> np.ndarray:
        return model.last(tokens, self._running(), top)[0]

    def trace(self, model: Engine, tokens: np.ndarray, top: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return model.trace(tokens, self._running(), top)[:2]

    def _running(self) -> State:
        return State(**{name: array[: self._count] for name, array in self._arrays.items()})


def slots_of(model: Any, slots: int) -> Slots:
    """Room for so many sequences of a model."""
    return ArraySlots(model, slots) if isinstance(model, Engine) else Slots()
