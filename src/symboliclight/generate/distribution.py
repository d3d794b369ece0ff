"""The distribution of the next token: filters over logits. All arithmetic is numpy.

Legend: V vocabulary, N candidates. Order of the filters: repetition penalty, temperature, top-k, top-p, min-p.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from symboliclight.core.errors import InputError

GREEDY = 1e-6  # a temperature below this takes the most likely token
DAMAGED = "the model's logits are not finite; its weights are damaged, use an earlier checkpoint"
GROUPS = 4  # `largest` looks for k values among the maxima of this many times k groups


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises `InputError` for values that mean nothing."""

    temperature: float = 0.8  # 0: always the most likely token
    top_k: int = 0  # keep the k most likely; 0: all
    top_p: float = 1.0  # keep the fewest most likely that hold this much probability
    min_p: float = 0.0  # drop what is less likely than this share of the most likely
    repetition_penalty: float = 1.0  # see `penalise`; 1: none
    repetition_window: int = 64  # tokens looked back upon, prompt included
    adaptive: float = 0.0  # nats, see `adapted_temperature`; 0: off

    def __post_init__(self) -> None:
        rules = {
            "temperature": (0 <= self.temperature < float("inf"), "0 or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p < 1, "in [0, 1)"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "positive"),
            "repetition_window": (self.repetition_window >= 0, "0 or more"),
            "adaptive": (0 <= self.adaptive < float("inf"), "0 (off) or more nats"),
        }
        for name, (good, rule) in rules.items():
            if not good:
                raise InputError(f"--{name.replace('_', '-')} must be {rule}, got {getattr(self, name)}")


def penalise(logits: np.ndarray, recent: Collection[int], penalty: float) -> np.ndarray:
    """Divide positive logits (V,) of recent ids by `penalty`, multiply negative ones by it (arXiv 1909.05858)."""
    ids = np.unique(np.fromiter(recent, np.int64, len(recent)))
    out = logits.astype(np.float64)
    out[ids] = np.where(out[ids] > 0, out[ids] / penalty, out[ids] * penalty)
    return out


def adapted_temperature(temperature: float, entropy: float, half: float) -> float:
    """T · H / (H + half): T where the model is uncertain, towards 0 (greedy) where it is sure.

    H is the entropy of the next token at temperature 1, `half` the entropy at which the temperature is halved, both
    in nats. half = 0 leaves the temperature as it is.
    """
    return temperature if half == 0 else temperature * entropy / (entropy + half)


def distribution(logits: np.ndarray, how: Sampling, recent: Collection[int] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Candidate ids (N,), ascending, and their probabilities (N,) float64, summing to 1, from logits (V,)."""
    z = penalise(logits, recent, how.repetition_penalty) if how.repetition_penalty != 1 and recent else logits
    if not np.isfinite(z.max()):
        raise InputError(DAMAGED)
    temperature = adapted_temperature(how.temperature, _entropy(z), how.adaptive) if how.adaptive else how.temperature
    if temperature < GREEDY:
        return np.array([z.argmax()]), np.ones(1)
    ids = np.sort(largest(z, how.top_k)) if 0 < how.top_k < len(z) else np.arange(len(z))
    p = _softmax(z[ids].astype(np.float64) / temperature)
    if how.top_p < 1:
        few = np.sort(_nucleus(p, how.top_p))
        keep = few[p[few] >= how.min_p * p.max()]
    else:
        keep = np.flatnonzero(p >= how.min_p * p.max())
    keep = keep[p[keep] > 0]
    return ids[keep], p[keep] / p[keep].sum()


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Indices (k,) of the k largest of x (V,), the largest first, of equal ones that with the lower index."""
    candidates, several = np.arange(0), len(x) // max(GROUPS * k, 1)
    if several > 1:
        groups = x[: len(x) // several * several].reshape(-1, several).max(1)  # k of these are k of x
        bound = np.partition(groups, -k)[-k]
        candidates = np.flatnonzero(x >= bound if bound > -np.inf else x > bound)  # most may be -inf
    if len(candidates) < k:
        candidates = np.arange(len(x))
    return candidates[np.argsort(-x[candidates], kind="stable")[:k]]


def log_sum(logits: np.ndarray) -> np.ndarray:
    """log of the sum of exp over the last axis, in float64."""
    top = logits.max(-1, keepdims=True)
    shares = logits - top
    np.exp(shares, out=shares)
    return top[..., 0] + np.log(shares.sum(-1, dtype=np.float64))


def _nucleus(p: np.ndarray, share: float) -> np.ndarray:
    """Indices of the fewest largest probabilities (N,) that hold `share` of 1 together, the largest first."""
    for count in (len(p) // 128, len(p)):  # few are nearly always enough, and found faster
        order = largest(p, count)
        held = np.cumsum(p[order])
        if len(held) and held[-1] >= share:
            break
    return order[: np.searchsorted(held, share) + 1]


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def _entropy(z: np.ndarray) -> float:
    """Entropy in nats of softmax(z)."""
    p = _softmax(z.astype(np.float64))
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
