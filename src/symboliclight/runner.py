"""A folder as something that runs: the torch model of a checkpoint, or the torch-free runtime."""

import importlib.util
from typing import Any

from symboliclight import checkpoint, engine
from symboliclight.engine.pack import Precision
from symboliclight.errors import InputError
from symboliclight.tokenizer import FILE_NAME as TOKENIZER
from symboliclight.tokenizer import Tokenizer


def load_runner(
    directory: str, precision: Precision | None = None, threads: int | None = None
) -> tuple[Any, Tokenizer]:
    """A model that generates and scores text, and its tokenizer.

    It is the runtime, on `threads`, if a precision is asked for, torch is missing or the folder was exported.
    Raises `InputError` if a file is missing or damaged.
    """
    exported = engine.exported_precision(directory)
    if precision is None and exported is None and importlib.util.find_spec("torch") is not None:
        from symboliclight.model import load

        model, tokenizer = load(directory)
        if tokenizer is None:
            raise InputError(f"{directory} has no {TOKENIZER}, so it takes no text; import it again with --tokenizer")
        return model, tokenizer
    return engine.load(directory, precision, threads), Tokenizer.load(checkpoint.locate(directory))
