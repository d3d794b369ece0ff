"""SymbolicLight: train, evaluate, run and explain a spike-gated dual-path language model."""

from typing import TYPE_CHECKING, Any

from symboliclight.core.config import DataConfig, ModelConfig, RunConfig, TrainConfig, preset
from symboliclight.core.errors import InputError
from symboliclight.core.version import __version__

if TYPE_CHECKING:
    from symboliclight.model import build, load

__all__ = ["DataConfig", "InputError", "ModelConfig", "RunConfig", "TrainConfig", "__version__", "build", "load",
           "preset"]

_LAZY = {"build": "symboliclight.model", "load": "symboliclight.model"}  # need torch: imported on first use


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
