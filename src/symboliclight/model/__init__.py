"""Models behind one seam: `forward(tokens, state=None) -> (logits, state)`."""

from torch import nn

from symboliclight.config import ModelConfig
from symboliclight.model.lm import SymbolicLight
from symboliclight.model.state import LayerState, State

__all__ = ["LayerState", "State", "SymbolicLight", "build"]


def build(config: ModelConfig) -> nn.Module:
    """A freshly initialised model of the configured family, on CPU in float32."""
    if config.family == "gpt2":
        from symboliclight.model.gpt2 import GPT2

        return GPT2(config)
    return SymbolicLight(config)
