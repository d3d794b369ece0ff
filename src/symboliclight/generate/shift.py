"""What a request adds to logits: a bias of chosen ids, and less for what was written before. V vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from symboliclight.core.errors import InputError

PENALTY, BIAS = 2, 100  # the largest of each, either way


@dataclass(frozen=True)
class Shift:
    """Added before every other rule, temperature included. Raises `InputError` for values out of range."""

    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # of ids, each once

    def __post_init__(self) -> None:
        for name in ("frequency_penalty", "presence_penalty"):
            if not abs(getattr(self, name)) <= PENALTY:
                raise InputError(f"{name} must be in -{PENALTY}..{PENALTY}, got {getattr(self, name)}")
        for index, value in self.logit_bias:
            if not abs(value) <= BIAS:
                raise InputError(f"logit_bias must be in -{BIAS}..{BIAS}, got {value} for {index}")

    def __bool__(self) -> bool:
        return bool(self.frequency_penalty or self.presence_penalty or self.logit_bias)

    def apply(self, logits: np.ndarray, counts: Mapping[int, int]) -> np.ndarray:
        """Logits (V,) float64: z[j] + bias[j] - c[j] · frequency - (c[j] > 0) · presence, as OpenAI's API has it.

        `counts`: how often each id was written in this text before; its prompt does not count.
        """
        out = logits.astype(np.float64)
        for index, value in self.logit_bias:
            out[index] += value
        if counts and (self.frequency_penalty or self.presence_penalty):
            ids = np.fromiter(counts, np.int64, len(counts))
            times = np.fromiter(counts.values(), np.float64, len(counts))
            out[ids] -= times * self.frequency_penalty + self.presence_penalty
        return out
