"""safetensors files mapped into memory, every claim of the header checked first: model files are untrusted."""

import contextlib
import json
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.core.parts import read_parts

DTYPES = {name: np.dtype(code) for name, code in
          (("F32", "<f4"), ("F16", "<f2"), ("BF16", "<u2"), ("F64", "<f8"), ("I64", "<i8"), ("U16", "<u2"),
           ("U8", "u1"), ("I8", "i1"))}
MAX_HEADER = 100_000_000  # bytes, as the format says


def map_tensors(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read-only arrays that lie in the file or in its shards, and its metadata; half precision is widened.

    Raises `InputError` for anything but sound files.
    """
    return read_parts(file, _map)


def _map(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with open(file, "rb") as handle:
            size = handle.seek(0, 2)
            data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            _in_large_pages(data)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; check the path") from error
    try:
        return _parse(data, size)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({str(error).splitlines()[0]}); restore it from a good copy") from error


def _in_large_pages(data: Any) -> None:
    """Ask for large pages where the file is yet to be read from the disk; a wish, not every system grants it."""
    if isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            data.madvise(mmap.MADV_HUGEPAGE)


def _parse(data: Any, size: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if size < 8:
        raise ValueError("shorter than its header")
    length = int.from_bytes(data[:8], "little")
    if length > min(size - 8, MAX_HEADER):
        raise ValueError("the header does not fit in the file")
    header = json.loads(bytes(data[8 : 8 + length]), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata are not text")
    body, end, tensors = 8 + length, 0, {}
    entries = [(name, *_entry(name, value)) for name, value in header.items()]
    for name, dtype, shape, first, last in sorted(entries, key=lambda entry: entry[3:]):
        if first != end or last > size - body:
            raise ValueError(f"tensor {name!r} overlaps another, leaves a gap or reaches beyond the end")
        end = last
        array = np.frombuffer(data, dtype, math.prod(shape), body + first).reshape(shape)
        if header[name]["dtype"] == "BF16":  # a checkpoint to save space; packed bfloat16 is U16
            array = (array.astype(np.uint32) << 16).view(np.float32)
        elif header[name]["dtype"] == "F16":
            array = array.astype(np.float32)
        tensors[name] = array if array.flags.aligned else array.copy()  # other writers may not align
    if end != size - body:
        raise ValueError("the file is longer than its tensors")
    return tensors, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("the header names something twice")
    return out


def _entry(name: str, value: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """dtype, shape, first and last byte of one header entry."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    shape, offsets = value["shape"], value["data_offsets"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            raise ValueError(f"tensor {name!r} has a shape or offsets that are not natural numbers")
    if not isinstance(value["dtype"], str) or value["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name!r} has dtype {str(value['dtype'])[:20]!r}, known are {', '.join(DTYPES)}")
    dtype = DTYPES[value["dtype"]]
    if len(offsets) != 2 or len(shape) > 8 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name!r} has offsets that do not fit its shape")
    return dtype, tuple(shape), offsets[0], offsets[1]


def finite(array: np.ndarray) -> bool:
    """Has float32 `array`, or bfloat16 as uint16, neither NaN nor infinity? Reads it twice, allocates nothing."""
    if not array.size or array.dtype.itemsize in (1, 8):  # integers
        return True
    bits = 8 * array.dtype.itemsize
    top = 0x7F80 << (bits - 16)
    signed, unsigned = array.view(f"i{bits // 8}"), array.view(f"u{bits // 8}")
    return bool(signed.max() < top and unsigned.max() < top + (1 << (bits - 1)))
