"""The host nodes of an exported model in NumPy: what NIR has no word for, as its manifest states it.

Each kind is built from its parameters and tensors, reads arrays by port and returns one array; `reset` forgets.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.interop.nir.files import Host

Values = dict[str, Any]


class Table:
    """The input current of a token: a row."""

    def __init__(self, host: Host, dtype: np.dtype) -> None:
        self.rows, self.dtype, self.name = host.tensors["rows"], dtype, host.name

    def __call__(self, values: Values) -> np.ndarray:
        token = int(values["token"])
        if not 0 <= token < len(self.rows):
            raise InputError(f"token {token} is not in {self.name}, which has {len(self.rows)} rows; use the "
                             "tokenizer beside the model")
        return self.rows[token].astype(self.dtype)


class LayerNorm:
    """y = weight (x - mean) / sqrt(var + eps) + bias."""

    def __init__(self, host: Host, dtype: np.dtype) -> None:
        self.weight, self.bias = (host.tensors[part].astype(dtype) for part in ("weight", "bias"))
        self.eps = dtype.type(host.parameters["eps"])

    def __call__(self, values: Values) -> np.ndarray:
        x = values["input"]
        x = x - x.mean()
        return x / np.sqrt((x * x).mean() + self.eps) * self.weight + self.bias


class Gelu:
    """y = x/2 (1 + erf(x / sqrt(2)))."""

    def __init__(self, host: Host, dtype: np.dtype) -> None:
        self.dtype = dtype

    def __call__(self, values: Values) -> np.ndarray:
        x = values["input"]
        erf = np.array([math.erf(v) for v in (x / math.sqrt(2)).tolist()], self.dtype)
        return x / 2 * (1 + erf)


class Attention:
    """Causal window attention with anchors over the keys whose token spiked; holds what it may still see."""

    def __init__(self, host: Host, dtype: np.dtype) -> None:
        p = host.parameters
        self.shape, self.window, self.anchors = (p["heads"], p["head_dim"]), p["window"], p["anchors"]
        self.gate, self.dtype = p["gate"], dtype
        exponent = -np.arange(0, p["head_dim"], 2, dtype=dtype) / dtype.type(p["head_dim"])
        self.inverse = dtype.type(p["rope_base"]) ** exponent
        self.reset()

    def reset(self) -> None:
        self.position = 0
        self.keys: list[tuple[int, np.ndarray, np.ndarray]] = []  # position, key and value (H, K); open gates only

    def __call__(self, values: Values) -> np.ndarray:
        i = self.position
        q, k = self._turn(values["q"]), self._turn(values["k"])
        v = values["v"].reshape(self.shape)
        self.position += 1
        self.keys = [seen for seen in self.keys if i - seen[0] <= self.window or seen[0] < self.anchors]
        if self.gate and not (values["spikes"] > 0).any():
            return np.zeros(v.size, self.dtype)
        self.keys.append((i, k, v))
        keys, held = (np.stack([seen[part] for seen in self.keys]) for part in (1, 2))
        score = np.einsum("hk,jhk->hj", q, keys) * self.dtype.type(self.shape[1] ** -0.5)
        share = np.exp(score - score.max(1, keepdims=True))
        return np.einsum("hj,jhk->hk", share / share.sum(1, keepdims=True), held).reshape(-1)

    def _turn(self, x: np.ndarray) -> np.ndarray:
        """RoPE at the present position."""
        angle = self.dtype.type(self.position) * self.inverse
        cos, sin = np.cos(angle), np.sin(angle)
        a, b = np.split(x.reshape(self.shape), 2, axis=1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], 1)


KINDS: dict[str, Callable[[Host, np.dtype], Any]] = {
    "table": Table, "layer_norm": LayerNorm, "gelu": Gelu, "attention": Attention,
}


def host(node: Host, dtype: np.dtype) -> Any:
    """The node as a callable. Raises `InputError` for a kind or a parameter that is not known."""
    if node.kind not in KINDS:
        raise InputError(f"node {node.name} is of kind {node.kind!r}, which is not run here; known are "
                         f"{', '.join(KINDS)}, clamp")
    try:
        return KINDS[node.kind](node, dtype)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"node {node.name} ({node.kind}) lacks or misstates {error}; "
                         "export the model again") from error
