"""The tensors of a model in one file or, where transformers cut them at `max_shard_size`, in several with an index."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from symboliclight.core.errors import InputError


def read_parts(file: Path, read: Callable[[Path], tuple[dict[str, Any], dict[str, str]]]
               ) -> tuple[dict[str, Any], dict[str, str]]:
    """What `read` finds in each of `parts_of(file)`, together. Raises `InputError` if two hold the same tensor."""
    tensors: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for part in parts_of(file):
        found, about = read(part)
        if twice := sorted(found.keys() & tensors.keys()):
            raise InputError(f"{part} holds {twice[0]} again, which another shard has; restore all from a good copy")
        tensors, metadata = tensors | found, metadata | about
    return tensors, metadata


def parts_of(file: Path) -> list[Path]:
    """The files with the tensors of `file`: itself or, where transformers cut it up, the shards that its index names.

    Raises `InputError` for an index that is not one.
    """
    index = file.with_name(f"{file.name}.index.json")
    if file.exists() or not index.exists():
        return [file]
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        names = []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InputError(f"{index} does not name the files of a model; restore it, or save the model again in one file "
                         "with a larger max_shard_size")
    return [file.with_name(name) for name in names]
