"""A folder as something that runs: the torch model of a checkpoint, or the torch-free runtime. All loading is here."""

import importlib.util
from pathlib import Path
from typing import Any

import symboliclight
from symboliclight import engine
from symboliclight.core import checkpoint
from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import FILE_NAME as TOKENIZER
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.engine.pack import Precision

SHIPPED = Path(symboliclight.__file__).parent / "shipped"  # the model of the package: docs/results/shipped.md


def load_model(directory: str, device: str = "cpu") -> tuple[Any, Tokenizer]:
    """The torch model and tokenizer of a checkpoint or run folder, on `device`: cpu, cuda, cuda:N or auto.

    Raises `InputError` without PyTorch or the device, or if a file is missing or damaged.
    """
    model, tokenizer = load_weights(directory)
    if device != "cpu":
        from symboliclight.train.runtime import choose_device

        model = model.to(choose_device(device))
    return model, _present(tokenizer, directory)


def load_weights(directory: str) -> tuple[Any, Tokenizer | None]:
    """As `load_model`, but weights that were imported without a tokenizer come without one."""
    try:
        from symboliclight.model import load
    except ImportError as error:
        raise InputError("running a model needs PyTorch: pip install 'symboliclight[train]'") from error
    return load(directory)


def load_runner(
    directory: str, precision: Precision | None = None, threads: int | None = None, device: str = "cpu"
) -> tuple[Any, Tokenizer]:
    """What generates and scores text, on `threads`: the runtime or the torch model.

    It is the runtime if a precision is asked for, torch is missing or the folder was exported; on another `device` the
    torch model, single tokens of it recorded (model/graph.py). Raises `InputError` if a file is missing or damaged, or
    if the device is not there or not for the runtime.
    """
    if threads is not None and threads < 1:
        raise InputError(f"--threads must be positive, got {threads}")
    if device != "cpu":
        if precision is not None:
            raise InputError(f"the runtime that --precision {precision} asks for runs on the CPU; leave out "
                             f"--precision or --device {device}")
        model, tokenizer = load_model(directory, device)
        from symboliclight.model.graph import recorded

        return recorded(model), tokenizer
    exported = engine.exported_precision(directory)
    if precision is None and exported is None and importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(threads or torch.get_num_threads())
        return load_model(directory)
    return engine.load(directory, precision, threads), _present(checkpoint.load_tokenizer(directory), directory)


def _present(tokenizer: Tokenizer | None, directory: str) -> Tokenizer:
    if tokenizer is None:
        raise InputError(f"{directory} has no {TOKENIZER}, so it takes no text; restore it, or import the model again "
                         "with --tokenizer")
    return tokenizer
