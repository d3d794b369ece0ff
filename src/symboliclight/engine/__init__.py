"""The torch-free runtime: `load(directory)` gives an engine, `engine(tokens, state) -> (logits, state)` in numpy."""

from symboliclight.engine.model import Engine, export, exported_precision, load
from symboliclight.engine.state import State

__all__ = ["Engine", "State", "export", "exported_precision", "load"]
