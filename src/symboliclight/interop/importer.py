"""A released .pt file -> a checkpoint folder: no code from the file runs, and it is never in memory as a whole."""

import hashlib
import pickle
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from symboliclight.core import checkpoint
from symboliclight.core.config import ModelConfig
from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.engine.files import finite
from symboliclight.engine.weights import places, vector_shapes
from symboliclight.interop.released import FETCH, PUBLISHED, config_of, plain_name, released_name

_CHUNK = 1 << 20  # bytes
_UNUSED = 0.1  # largest part of a vocabulary without pieces; 57,344 entries for 55,296 pieces leave 0.04


@dataclass(frozen=True)
class Imported:
    """What was read: parameters, bytes and SHA-256 of the file, which published file it is, pieces of the tokenizer."""

    parameters: int
    bytes: int
    sha256: str
    published: str | None
    pieces: int | None


def import_released(file: str | Path, out: str | Path, tokenizer: str | Path | None = None, sha256: str | None = None,
                    ignore: Collection[str] = (), on_bytes: Callable[[int], Any] = lambda size: None) -> Imported:
    """Write the released checkpoint `file` as a checkpoint folder `out`; without `tokenizer` it computes logits only.

    `sha256` is the hash that the file must have, `ignore` names config fields to pass over; `on_bytes` hears of bytes
    read, twice the file in all. Raises `InputError` for anything but a sound released checkpoint; `out` is then as it
    was.
    """
    file = Path(file)
    pieces = None if tokenizer is None else Tokenizer.load(tokenizer)
    size, digest = _verify(file, sha256, on_bytes)
    state, fields = _read(file)
    names = _plain_names(file, state)
    try:
        config = config_of(fields, names, ignore)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    plan = _plan(file, config, {plain: state[name] for plain, name in names.items()})
    _check_tokenizer(config, pieces, tokenizer)
    shapes = {ours: tuple(state[names[plain]].shape) for ours, plain in plan.items()}
    del state  # lets go of the mapping
    arrays = _arrays(file, {ours: names[plain] for ours, plain in plan.items()}, on_bytes)
    checkpoint.save(out, config, checkpoint.Stream(shapes, arrays), pieces)
    published = next((p.name for p in PUBLISHED if p.sha256 == digest), None)
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    return Imported(count, size, digest, published, None if pieces is None else pieces.vocab_size)


def _verify(file: Path, sha256: str | None, on_bytes: Callable[[int], Any]) -> tuple[int, str]:
    """Size and hash of a file; the hash must be `sha256`, or the published one of a file of that size."""
    digest, size = hashlib.sha256(), 0
    try:
        with open(file, "rb") as handle:
            while chunk := handle.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                on_bytes(len(chunk))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; check the path, or fetch the published files: "
                         f"{FETCH[0]}") from error
    found = digest.hexdigest()
    wanted = sha256 or next((p.sha256 for p in PUBLISHED if p.bytes == size), found)
    if found != wanted.strip().lower():
        raise InputError(f"{file} ({size:,} bytes) has SHA-256 {found} instead of {wanted}: damaged or another file; "
                         "fetch it again")
    return size, found


def _read(file: Path) -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """Entries and config of a checkpoint. Tensors stay in the file: they are mapped, and only tensors are built."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on versions of the format; what matters is checked
            body = torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{file} holds more than tensors and plain values, perhaps code; nothing of it was run; "
                         "use a weights-only file") from error
    except Exception as error:  # whatever a damaged pickle makes the reader stumble over
        raise InputError(f"{file} is not a file that torch.save wrote in its zip format, or is damaged or "
                         "incomplete; fetch it again") from error
    parts = body if isinstance(body, dict) else {}
    state, fields = parts.get("model", parts.get("model_state_dict")), parts.get("config")
    if not isinstance(state, dict) or not isinstance(fields, dict):
        raise InputError(f"{file} is not a released SymbolicLight checkpoint, which holds `config` and `model` (or "
                         "`model_state_dict`); `symboliclight import` reads no other")
    return state, fields


def _plain_names(file: Path, state: Mapping[Any, Any]) -> dict[str, str]:
    """Plain name -> name in the file, buffers left out."""
    names: dict[str, str] = {}
    for name in state:
        plain = plain_name(str(name))
        if plain in names:
            raise InputError(f"{file} holds {plain} twice, as {names[plain]} and {name}; use a file saved once")
        if plain is not None:
            names[plain] = name
    return names


def _plan(file: Path, config: ModelConfig, found: dict[str, Any]) -> dict[str, str]:
    """Our names -> plain released names, in the model's order, once every name, shape and dtype is as it must be."""
    if config.n_layers > len(found):  # before a model of that size is laid out
        raise InputError(f"{file} has {len(found)} weights, too few for the {config.n_layers} layers of its config; "
                         "fetch it again")
    if config.paths == "decay":  # saved all the same, and never read
        found = {name: value for name, value in found.items() if not name.endswith(".tcam.attn_gate")}
    expected = {released_name(name): (name, shape) for name, shape in _shapes(config).items()}
    wrong = [(name, "is missing") for name in expected if name not in found]
    wrong += [(name, "is unknown") for name in found if name not in expected]
    wrong += [(name, f"is {_describe(found[name])} instead of float32{list(shape)}") for name, (_, shape)
              in expected.items() if name in found and _describe(found[name]) != f"float32{list(shape)}"]
    if wrong:
        raise InputError(f"{file} does not hold what its config describes: {_listed(wrong, config.n_layers)} "
                         f"({len(wrong)} differences in {len(expected)} weights); it is damaged or another model")
    return {ours: name for name, (ours, _) in expected.items()}


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our parameters. Laying the model out on torch's meta device would say the same and cost 170 MB."""
    shapes = {"encoder.embedding.weight": (config.vocab_size, config.d_model)}
    shapes |= {place.name: (place.outs, place.ins) for place in places(config)}
    return dict(sorted((shapes | vector_shapes(config)).items()))


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized:
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return f"a {type(value).__name__} of another kind"


def _listed(wrong: list[tuple[str, str]], n_layers: int) -> str:
    """All differences in one line; one that every block has is named once."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, what in wrong:
        groups.setdefault((re.sub(r"^blocks\.\d+\.", "blocks.*.", name), what), []).append(name)
    return ", ".join(f"{label} {what}" if len(names) == n_layers > 1 else
                     ", ".join(f"{name} {what}" for name in names) for (label, what), names in groups.items())


def _check_tokenizer(config: ModelConfig, pieces: Tokenizer | None, path: Any) -> None:
    if pieces is not None and not (1 - _UNUSED) * config.vocab_size <= pieces.vocab_size <= config.vocab_size:
        raise InputError(f"{path} has {pieces.vocab_size:,} pieces, which do not fit a vocabulary of "
                         f"{config.vocab_size:,}; use the tokenizer published with these weights: the 194M and the "
                         "0.8B model have different ones")


def _arrays(file: Path, names: dict[str, str], on_bytes: Callable[[int], Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The weights by our names. The file is mapped anew for every block, so that what was read before is let go."""
    for _, group in groupby(names, lambda name: name.split(".")[:2]):
        state, _ = _read(file)
        for ours in group:
            array = state[names[ours]].detach().numpy()
            if not finite(array):
                raise InputError(f"{file}: {names[ours]} holds NaN or infinity; use another checkpoint")
            yield ours, array
            on_bytes(array.nbytes)
