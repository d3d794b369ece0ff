"""Models behind one seam: `forward(tokens, state=None) -> (logits, state)`."""

from pathlib import Path

from torch import nn

from symboliclight.core import checkpoint
from symboliclight.core.config import ModelConfig
from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.engine.weights import exported
from symboliclight.model.lm import SymbolicLight
from symboliclight.model.state import LayerState, State

__all__ = ["LayerState", "State", "SymbolicLight", "build", "load"]


def build(config: ModelConfig) -> nn.Module:
    """A freshly initialised model of the configured family, on CPU in float32."""
    if config.family == "gpt2":
        from symboliclight.model.gpt2 import GPT2

        return GPT2(config)
    return SymbolicLight(config)


def load(directory: str | Path, device: str = "cpu") -> tuple[nn.Module, Tokenizer | None]:
    """The model of a checkpoint (or of the last one of a run folder) in evaluation mode, and its tokenizer.

    The tokenizer is None only for weights that were imported without one.
    Raises `InputError` if a file is missing or damaged, or if the weights do not fit the config.
    """
    directory = checkpoint.locate(directory)
    config, tensors = checkpoint.load(directory)
    if precision := exported(tensors):
        raise InputError(f"{directory} was exported at {precision} for the runtime; name the checkpoint it came from")
    model = build(config)
    checkpoint.check_tensors(directory / checkpoint.MODEL, tensors, model.state_dict())
    model.load_state_dict(tensors)
    return model.to(device).eval(), checkpoint.load_tokenizer(directory)
