"""How float32 weights become 16 and 4 bits: bfloat16, and levels that lie where weights are dense."""

import numpy as np

GROUP = 32  # inputs that share a scale under int4
# The 16 values of int4, in units of the scale; csrc/engine/engine.hpp has them too. They are Lloyd's optimum for 32
# normal weights, divided by the one farthest from 0, which becomes the first level; the ninth is held at 0.
LEVELS = np.array([-127, -101, -81, -64, -49, -36, -24, -12, 0, 12, 25, 39, 53, 69, 88, 111], np.float32)
DAMPING = 0.01  # of the mean square of an input, added to all: gives the matrix of moments an inverse
SHARES = (1.03, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82)  # of the scale that fits the farthest weight: tried too
ROWS = 4096  # outputs rounded at once: they do not depend on each other

_MIDDLE = (LEVELS[1:] + LEVELS[:-1]) / 2


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Nearest bfloat16, ties to even, as uint16; x is finite float32."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_levels(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest levels of float32 `weight` (outs, ins), ins a multiple of 32.

    Returns: numbers of levels (outs, ins) uint8, and the scales of groups (outs, ins / 32) as bits of bfloat16.
    """
    groups = weight.reshape(len(weight), -1, GROUP)
    bits = _scales(groups)
    return _nearest(groups, from_bfloat16(bits)[..., None]).reshape(weight.shape), bits


def compensated(weight: np.ndarray, moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels that keep the products of `weight` with real inputs x near, rather than its entries; as `to_levels`.

    moment: (ins, ins), the mean of x xᵀ. Input by input, what rounding leaves over moves to the weights of later inputs
    as far as these carry the same (GPTQ, arXiv 2210.17323). Scales have the least square error for the moved weights.
    """
    unused = np.diag(moment) == 0  # padding, or never active: no error there counts
    moment = moment + np.diag(DAMPING * np.mean(np.diag(moment)) + unused)
    root = np.linalg.cholesky(np.linalg.inv(moment)).T
    parts = [_compensated(weight[i : i + ROWS].astype(np.float64), root) for i in range(0, len(weight), ROWS)]
    return np.concatenate([codes for codes, _ in parts]), np.concatenate([bits for _, bits in parts])


def _compensated(weight: np.ndarray, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same for a few outputs; overwrites `weight`. root: upper Cholesky factor of the inverse moments."""
    codes, bits = np.empty(weight.shape, np.uint8), []
    for a in range(0, weight.shape[1], GROUP):
        b = a + GROUP
        bits.append(_best_scales(weight[:, a:b].astype(np.float32)))
        scale, errors = from_bfloat16(bits[-1]), np.empty((len(weight), GROUP))
        for i in range(a, b):
            codes[:, i] = _nearest(weight[:, i].astype(np.float32), scale)
            error = errors[:, i - a] = (weight[:, i] - LEVELS[codes[:, i]] * scale) / root[i, i]
            weight[:, i + 1 : b] -= np.outer(error, root[i, i + 1 : b])
        weight[:, b:] -= errors @ root[a:b, b:]
    return codes, np.stack(bits, 1)


def _scales(groups: np.ndarray) -> np.ndarray:
    """Units of float32 groups (..., 32): the weight farthest from 0 is LEVELS[0] of them."""
    low, high = groups.min(-1), groups.max(-1)
    return to_bfloat16(np.where(-low > high, low, high) / LEVELS[0])


def _best_scales(groups: np.ndarray) -> np.ndarray:
    """Of those units, and of shares of them, the ones with the least square error."""

    def error(bits: np.ndarray) -> np.ndarray:
        scale = from_bfloat16(bits)[..., None]
        return np.square(LEVELS[_nearest(groups, scale)] * scale - groups).sum(-1)

    best = _scales(groups)
    whole, least = from_bfloat16(best), error(best)
    for share in SHARES:
        bits = to_bfloat16(whole * np.float32(share))
        found = error(bits)
        best, least = np.where(found < least, bits, best), np.minimum(found, least)
    return best


def _nearest(weights: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Numbers of the nearest levels; the zero where there is no scale."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.searchsorted(_MIDDLE, np.where(scale != 0, weights / scale, np.float32(0))).astype(np.uint8)
