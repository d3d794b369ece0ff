"""A torch model called with numpy arrays, without gradients: what sampling and evaluation need of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 1024  # tokens whose logits exist at one time


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """No gradients, no dropout; training mode is restored afterwards."""
    training = model.training
    if training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if training:
            model.train()


def padded_state(model: Any, padding: np.ndarray) -> Any:
    """The state before rows with `padding` (B,) absent tokens on their left."""
    return model.initial_state(len(padding), torch.from_numpy(padding))


def last_logits(model: Any, tokens: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
    """Read tokens (B, T); return the logits after the last one, (B, V) float32, and the state."""
    with inference(model):
        c, _, state = model.features(_on(model, tokens), state)
        return model.head(c[:, -1]).float().cpu().numpy(), state


def every_logits(model: Any, tokens: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
    """Read tokens (1, T); return the logits after each, (T, V) float32, and the state."""
    with inference(model):
        c, _, state = model.features(_on(model, tokens), state)
        return model.head(c[0]).float().cpu().numpy(), state


def token_nll(model: Any, tokens: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cross-entropy (B, T) float32 in nats of targets (B, T) after tokens (B, T), both int64."""
    with inference(model):
        c = model.features(_on(model, tokens))[0].flatten(0, 1)
        wanted = _on(model, targets).flatten()
        parts = [F.cross_entropy(model.head(rows).float(), chosen, reduction="none")
                 for rows, chosen in zip(c.split(ROWS), wanted.split(ROWS), strict=True)]
        return torch.cat(parts).view(targets.shape).cpu().numpy()


def stream(model: Any, tokens: np.ndarray, state: Any = None) -> tuple[np.ndarray, Any]:
    """What the head reads (B, T, D) float32 of tokens (B, T) int64, and the state."""
    with inference(model):
        features, _, state = model.features(_on(model, tokens), state)
        return features.float().cpu().numpy(), state


def token_scores(
    model: Any, tokens: np.ndarray, targets: np.ndarray, state: Any,
) -> tuple[np.ndarray, np.ndarray, Any]:
    """`token_nll` after `state`, whether each target is the likeliest token, (B, T) float32 and bool, and the state."""
    with inference(model):
        features, _, state = model.features(_on(model, tokens), state)
        c = features.flatten(0, 1)
        wanted = _on(model, targets).flatten()
        nll, first = [], []
        for rows, chosen in zip(c.split(ROWS), wanted.split(ROWS), strict=True):
            logits = model.head(rows).float()
            nll.append(F.cross_entropy(logits, chosen, reduction="none"))
            first.append(logits.argmax(-1) == chosen)
        found = [torch.cat(parts).view(targets.shape).cpu().numpy() for parts in (nll, first)]
        return found[0], found[1], state


def _on(model: Any, ids: np.ndarray) -> Tensor:
    return torch.from_numpy(ids).to(next(model.parameters()).device)
