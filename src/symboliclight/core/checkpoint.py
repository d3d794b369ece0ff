"""A checkpoint directory <-> (config, tensors, what a run needs to go on). Knows no model; imports without torch.

    config.json   model.safetensors   tokenizer.model   [training/state.json   training/optimizer.safetensors]

A directory appears whole or not at all: it is written beside its place, synced to disk, and renamed. Nothing here
unpickles: tensors are safetensors, the rest is JSON. Weights imported without their tokenizer say so in their metadata;
only they may lack tokenizer.model.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from symboliclight.core.atomic import remedy
from symboliclight.core.config import ModelConfig, from_dict, load_json, save_json
from symboliclight.core.errors import InputError
from symboliclight.core.parts import parts_of, read_parts
from symboliclight.core.tokenizer import FILE_NAME as TOKENIZER
from symboliclight.core.tokenizer import Tokenizer

CONFIG, MODEL = "config.json", "model.safetensors"
STATE, OPTIMIZER = "training/state.json", "training/optimizer.safetensors"
LAST = "last"  # in a run folder: link to the newest checkpoint
_TOKENIZER_HASH = "tokenizer_sha256"  # metadata of model.safetensors: ids mean nothing under another tokenizer
_NO_TOKENIZER = "none"  # in place of the hash
LINE = 64  # bytes of a cache line
LARGE_PAGE = 1 << 21  # bytes

Framework = Literal["torch", "numpy"]


@dataclass(frozen=True)
class Training:
    """What a run needs to go on: plain JSON values and the tensors of the optimiser."""

    state: dict[str, Any]
    tensors: Mapping[str, Any]


class Stream(NamedTuple):
    """Float32 tensors too large to hold together: their shapes by name, and the arrays, one by one in that order."""

    shapes: Mapping[str, tuple[int, ...]]
    arrays: Iterator[tuple[str, np.ndarray]]


def save(directory: str | Path, config: ModelConfig, tensors: Mapping[str, Any] | Stream, tokenizer: Tokenizer | None,
         training: Training | None = None, turns: bool = False) -> None:
    """Write a checkpoint, replacing the one that is there only once the new one is complete.

    `tensors` are torch tensors or numpy arrays; without a tokenizer the model computes logits only; `turns`: it learned
    to answer in marked turns. Raises `InputError` if the disk is full or `directory` holds something else; what was
    there before is then untouched.
    """
    directory = Path(directory)
    partial, old = _beside(directory)
    require_free(directory)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / STATE).parent.mkdir(parents=True)
        save_json(partial / CONFIG, model=config, **({"turns": True} if turns else {}))
        _write_tensors(partial / MODEL, tensors, {_TOKENIZER_HASH: tokenizer.hash if tokenizer else _NO_TOKENIZER})
        if tokenizer:
            tokenizer.save(partial / TOKENIZER)
        if training is None:
            (partial / STATE).parent.rmdir()
        else:
            _write_tensors(partial / OPTIMIZER, training.tensors, {})
            (partial / STATE).write_text(json.dumps(training.state, allow_nan=False, indent=1) + "\n", encoding="utf-8")
        _sync(partial)
        if directory.exists():
            os.replace(directory, old)
        os.replace(partial, directory)
        _sync_one(directory.parent)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write checkpoint {directory}: {_reason(error)}; earlier checkpoints are untouched; "
                         f"to go on from there, {remedy(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _recover(directory)
    shutil.rmtree(old, ignore_errors=True)


def require_free(directory: Path) -> None:
    """Raise `InputError` if something is there that is not a checkpoint, which `save` would not replace."""
    _recover(directory)
    if directory.exists() and not (directory / CONFIG).is_file():
        raise InputError(f"{directory} exists and is not a checkpoint; choose another directory")


def load(directory: str | Path, framework: Framework = "torch") -> tuple[ModelConfig, dict[str, Any]]:
    """Config and weights of a checkpoint, or of the last one of a run folder.

    Raises `InputError` naming the file that is missing, truncated or foreign, and if the tokenizer beside the
    weights is not the one that they were trained with.
    """
    directory = locate(directory)
    config = from_dict(ModelConfig, load_json(directory / CONFIG).get("model"), str(directory / CONFIG))
    tensors, metadata = read_tensors(directory / MODEL, framework)
    named = metadata.get(_TOKENIZER_HASH)
    if named == _NO_TOKENIZER and load_tokenizer(directory) is None:
        return config, tensors
    tokenizer = Tokenizer.load(directory)
    if tokenizer.vocab_size > config.vocab_size:  # fewer is fine: published models pad the vocabulary
        raise InputError(f"{directory / TOKENIZER} has {tokenizer.vocab_size} pieces, {directory / CONFIG} has "
                         f"vocab_size {config.vocab_size}; restore both from the same checkpoint")
    if named not in (None, _NO_TOKENIZER, tokenizer.hash):
        raise InputError(f"{directory / TOKENIZER} is not the tokenizer that {directory / MODEL} was trained with; "
                         "restore both from the same checkpoint")
    return config, tensors


def load_tokenizer(directory: str | Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint that `load` has accepted; None for weights imported without one."""
    directory = locate(directory)
    return Tokenizer.load(directory) if (directory / TOKENIZER).exists() else None


def has_turns(directory: str | Path) -> bool:
    """Whether a model learned to answer in turns that special pieces mark, and `chat` marks them by default."""
    return load_json(locate(directory) / CONFIG).get("turns") is True


def load_training(directory: str | Path) -> Training:
    """What `save` was given as `training`, tensors in torch. Raises `InputError` if it is missing or damaged."""
    directory = locate(directory)
    file = directory / STATE
    try:
        state = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; only a checkpoint of a run can be resumed") from error
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); resume from another checkpoint") from error
    if not isinstance(state, dict):
        raise InputError(f"{file} is damaged (not a JSON object); resume from another checkpoint")
    return Training(state, read_tensors(directory / OPTIMIZER)[0])


def locate(directory: str | Path) -> Path:
    """The checkpoint meant by `directory`: itself or, for a run folder, its last one. `InputError` if there is none."""
    directory = Path(directory)
    _recover(directory)
    if not directory.exists():
        raise InputError(f"checkpoint {directory} does not exist; check the path")
    if (directory / CONFIG).is_file():
        return directory
    if (directory / LAST / CONFIG).is_file():
        return directory / LAST
    raise InputError(f"{directory} is not a checkpoint: it has no {CONFIG}; name one that `symboliclight train` wrote")


def read_tensors(file: Path, framework: Framework = "torch") -> tuple[dict[str, Any], dict[str, str]]:
    """All tensors of a safetensors file, or of its shards, on CPU, and its metadata; half precision is widened."""
    return read_parts(file, lambda part: _read_part(part, framework))


def weight_bytes(directory: str | Path) -> int:
    """Size on disk of the weights of a checkpoint or exported folder."""
    return sum(part.stat().st_size for part in parts_of(locate(directory) / MODEL))


def _read_part(file: Path, framework: Framework) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(file, framework="pt" if framework == "torch" else "np") as reader:
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
            return {name: _widened(x) for name, x in tensors.items()}, reader.metadata() or {}
    except (ImportError, TypeError) as error:  # numpy has no bfloat16
        raise InputError(f"{file} needs torch to load: pip install 'symboliclight[train]'") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {file}: {_reason(error)}; it is missing, truncated or foreign, "
                         "restore it from a good copy") from error


def _widened(tensor: Any) -> Any:
    """float32 in place of half precision, of which it holds every value."""
    if isinstance(tensor, np.ndarray):
        return tensor.astype(np.float32) if tensor.dtype.name in ("float16", "bfloat16") else tensor
    return tensor.float() if str(tensor.dtype) in ("torch.float16", "torch.bfloat16") else tensor


def check_tensors(file: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise `InputError` with the first differences unless names, shapes and dtypes are the same."""
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is unknown" for name in found if name not in expected]
    wrong += [f"{name} is {_describe(found[name])} instead of {_describe(expected[name])}"
              for name in expected if name in found and _describe(found[name]) != _describe(expected[name])]
    if wrong:
        raise InputError(f"{file} does not fit its config: {', '.join(wrong[:3])}{', ...' if wrong[3:] else ''} "
                         f"({len(wrong)} of {len(expected)} tensors differ); restore all from the same checkpoint")


def _describe(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _write_tensors(file: Path, tensors: Mapping[str, Any] | Stream, metadata: Mapping[str, str]) -> None:
    """The safetensors format, tensor by tensor, so that equal models are equal files. What fills cache lines comes
    first: it begins at one where the file is mapped. (The library's writer wants all in memory and aligns to 8 bytes.)
    """
    if isinstance(tensors, Stream):
        kinds = {name: ("F32", 4, shape) for name, shape in tensors.shapes.items()}
        arrays = ((name, np.asarray(array, np.float32)) for name, array in tensors.arrays)
    else:
        names = sorted(tensors, key=lambda name: (tensors[name].nbytes % LINE > 0, name))
        kinds = {name: (_code(x), x.itemsize, tuple(x.shape)) for name, x in ((name, tensors[name]) for name in names)}
        arrays = ((name, _array(tensors[name])) for name in names)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}  # the library reads no empty file without
    end = 0
    for name, (code, size, shape) in kinds.items():
        start, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % LINE)
    with open(file, "xb", buffering=LARGE_PAGE) as out:
        _write(out, len(text).to_bytes(8, "little") + text)
        for (name, (_, size, shape)), (found, array) in zip(kinds.items(), arrays, strict=True):
            if (found, array.itemsize, array.shape) != (name, size, shape):
                raise ValueError(f"{found}{array.shape} came where {name}{shape} was announced")
            _write(out, np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data)


def _write(out: BinaryIO, data: bytes | memoryview) -> None:
    """Write in pieces that fill the buffer of `out` exactly, so that the disk gets whole large pages.

    Linux then keeps the file in large pages, and so it is mapped: weights are read faster from those.
    """
    rest = memoryview(data)
    while rest:
        room = LARGE_PAGE - out.tell() % LARGE_PAGE
        out.write(rest[:room])
        rest = rest[room:]


def _code(tensor: Any) -> str:
    """What safetensors calls the dtype of a tensor: F32, BF16, U8 and so on."""
    name = str(tensor.dtype).removeprefix("torch.")
    for ours, theirs in (("bfloat", "BF"), ("float", "F"), ("uint", "U"), ("int", "I")):
        name = name.replace(ours, theirs)
    return name.upper()


def _array(tensor: Any) -> np.ndarray:
    if isinstance(tensor, np.ndarray):
        return tensor
    import torch

    tensor = tensor.detach().cpu()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()  # numpy lacks bfloat16


def _beside(directory: Path) -> tuple[Path, Path]:
    """Where the new content is written, and where the old content waits while the two change places."""
    return directory.parent / f".{directory.name}.partial", directory.parent / f".{directory.name}.old"


def _recover(directory: Path) -> None:
    """Put the old content back if a save was killed between its two renames."""
    old = _beside(directory)[1]
    if old.exists() and not directory.exists():
        os.replace(old, directory)


def _sync(folder: Path) -> None:
    """Force a folder and all in it to the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    """One line that says what went wrong."""
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]
