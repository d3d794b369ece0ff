"""Weight matrices in the layouts of the runtime (csrc/engine/engine.hpp), from float32 (outs, ins).

A kind is a storage format, `.by_input` for matrices that spikes feed: those are stored input by input, so that a silent
input costs nothing. Under int4 they stay int8: active rows alone are read, and integers can be summed across inputs.
`.levels` tells int4 from that of older files, which had even steps.
"certified" is float32 with a sketch of the matrices whose sums only meet a threshold: same results, fewer bytes;
"certified-bfloat16" is the same of bfloat16; those matrices lie row by row (`.rows`), so that single ones can be read.
"""

from typing import Literal, get_args

import numpy as np

from symboliclight.engine.aligned import lined
from symboliclight.engine.rounding import GROUP, LEVELS, compensated, from_bfloat16, to_bfloat16, to_levels

Precision = Literal["float32", "bfloat16", "int8", "int4", "certified", "certified-bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
CERTIFIED: dict[Precision, Precision] = {"certified": "float32", "certified-bfloat16": "bfloat16"}  # same results
FORMATS = (*PRECISIONS[:4], "bfloat16.rows")  # csrc/engine/engine.hpp, Format
LANES = 16  # outputs side by side


def kind_of(precision: Precision, by_input: bool, in_8_bits: bool, judged: bool = False) -> str:
    """The kind of a matrix at a precision; `in_8_bits`: it stays int8 under int4; `judged`: `Place.judged`."""
    stored: str = CERTIFIED.get(precision, precision)
    if stored == "int4":
        stored = "int8" if in_8_bits else "int4.levels"
    elif precision == "certified-bfloat16" and judged:
        stored = "bfloat16.rows"
    return stored + ".by_input" * by_input


def format_of(kind: str) -> int:
    """The number of its storage format in the runtime."""
    return FORMATS.index(kind if kind in FORMATS else kind.split(".")[0])


def pack(weight: np.ndarray, kind: str, moment: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Data and scales of float32 `weight` (outs, ins); `kind` "float32" returns the very array.

    With `moment` (ins, ins) 4-bit weights are rounded for the inputs that it is of (`rounding.compensated`).
    """
    if kind == "float32":
        return weight, None
    if kind == "float32.by_input":
        return lined(weight.T), None
    if kind == "bfloat16.rows":
        return lined(to_bfloat16(weight)), None
    if kind == "bfloat16.by_input":
        return lined(to_bfloat16(weight).T), None
    if kind == "int8.by_input":
        scale = _scale(weight)
        return lined(np.rint(weight / scale[:, None]).astype(np.int8).T), scale
    weight = _padded(weight)
    if kind == "bfloat16":
        return _interleave(to_bfloat16(weight), 2), None
    if kind == "int8":
        scale = _scale(weight)
        return _interleave((np.rint(weight / scale[:, None]) + 128).astype(np.uint8), 4), scale
    return _int4(weight, moment)


def sketch(weight: np.ndarray) -> dict[str, np.ndarray]:
    """What decides most sides of a threshold without reading `weight` (outs, ins), float32: csrc/engine/sketch.hpp.

    Returns: data and scale as of kind "int8"; lost and kept (outs up to 16,) float32, so that the product in full and
    its 8-bit estimate of x = t k + e differ by at most lost |x| + kept |e|, Euclidean norms.
    """
    data, scale = pack(weight, "int8")
    assert scale is not None
    outs, ins = weight.shape
    exact = np.pad(weight, ((0, len(scale) - outs), (0, 0))).astype(np.float64)
    seen = scale[:, None].astype(np.float64) * np.rint(exact.astype(np.float32) / scale[:, None])
    whole, kept, lost = (np.sqrt(np.square(x).sum(1)) for x in (exact, seen, exact - seen))
    unit = 2.0**-24
    lost += (ins + 32) * unit * whole + 32 * unit * kept
    kept *= 1 + 32 * unit
    return {"data": data, "scale": scale, "lost": _rounded_up(lost), "kept": _rounded_up(kept)}


def residual(weight: np.ndarray, data: np.ndarray, scale: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What 4 bits leave of some rows of float32 `weight` (outs, ins), in 4 bits of its own.

    data, scale: the weight as `pack` has it. Returns: data and scale of what is left of them, and `tokens`, the rows.
    """
    left = weight[rows] - _from_int4(data, scale)[rows, : weight.shape[1]]
    data, scale = _int4(_padded(left), None)
    return {"data": data, "scale": scale, "tokens": rows}


def residual_shapes(outs: int, ins: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """dtype and shape of what `residual` returns for so many rows."""
    data, scale = packed_shapes(outs, ins, "int4.levels")
    return {"data": data, "scale": scale, "tokens": (np.dtype(np.int64), (outs,))}


def _rounded_up(x: np.ndarray) -> np.ndarray:
    """float32 above float64 x >= 0, with room for the few roundings of the run-time sum."""
    return (x * (1 + 1e-6)).astype(np.float32)


def sketch_shapes(outs: int, ins: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """dtype and shape of what `sketch` returns."""
    data, scale = packed_shapes(outs, ins, "int8")
    return {"data": data, "scale": scale, "lost": scale, "kept": scale}


def packed_shapes(outs: int, ins: int, kind: str) -> tuple[tuple[np.dtype, tuple[int, ...]], ...]:
    """dtype and shape of what `pack` returns: data, and scales where there are any."""
    blocks, groups = -(-outs // LANES), -(-ins // GROUP)
    dtype = np.dtype({"float32": "f4", "bfloat16": "u2", "int8": "u1", "int4": "u1"}[kind.split(".")[0]])
    if kind == "int8.by_input":
        return (np.dtype("i1"), (ins, outs)), (np.dtype("f4"), (outs,))
    if kind.endswith(".by_input"):
        return ((dtype, (ins, outs)),)
    if kind in ("float32", "bfloat16.rows"):
        return ((dtype, (outs, ins)),)
    if kind == "bfloat16":
        return ((dtype, (blocks, groups * GROUP // 2, LANES, 2)),)
    if kind == "int8":
        return (dtype, (blocks, groups * GROUP // 4, LANES, 4)), (np.dtype("f4"), (blocks * LANES,))
    return (dtype, (blocks, groups, 4, LANES, 4)), (np.dtype("u2"), (blocks, groups, LANES))


def _padded(weight: np.ndarray) -> np.ndarray:
    outs, ins = weight.shape
    if outs % LANES == 0 and ins % GROUP == 0:
        return weight
    return np.pad(weight, ((0, -outs % LANES), (0, -ins % GROUP)))


def _scale(weight: np.ndarray) -> np.ndarray:
    """Step of 8-bit weights of each output: its largest weight becomes 127."""
    largest = np.maximum(weight.max(1), -weight.min(1)) / np.float32(127)
    return lined(np.where(largest > 0, largest, np.float32(1)).astype(np.float32))


def _interleave(x: np.ndarray, step: int) -> np.ndarray:
    """(outs, ins) -> (blocks of 16 outputs, steps, 16, step)."""
    outs, ins = x.shape
    return lined(x.reshape(outs // LANES, LANES, ins // step, step).transpose(0, 2, 1, 3))


def _int4(weight: np.ndarray, moment: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Two numbers of levels a byte, by steps of 8 inputs, and a scale for each group of 32."""
    outs, ins = weight.shape
    if moment is None:
        codes, bits = to_levels(weight)
    else:
        codes, bits = compensated(weight, np.pad(moment, (0, ins - len(moment))))
    codes = codes.reshape(outs // LANES, LANES, ins // GROUP, 4, 2, 4)
    halves = codes[..., 0, :] | codes[..., 1, :] << 4
    return (lined(halves.transpose(0, 2, 3, 1, 4)),
            lined(bits.reshape(outs // LANES, LANES, -1).transpose(0, 2, 1)))


def _from_int4(data: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The float32 weights (outs up to 16, ins up to 32) that `_int4` stores."""
    blocks, groups = data.shape[:2]
    levels = LEVELS[np.stack([data & 15, data >> 4], 3)]  # (blocks, groups, 4, 2, 16, 4)
    weight = levels.transpose(0, 4, 1, 2, 3, 5).reshape(blocks, LANES, groups, GROUP)
    return (weight * from_bfloat16(scale).transpose(0, 2, 1)[..., None]).reshape(blocks * LANES, groups * GROUP)
