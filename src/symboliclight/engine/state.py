"""What running sequences leave behind: numpy arrays of fixed size, B sequences in front."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from symboliclight.core.atomic import remedy
from symboliclight.core.config import ModelConfig
from symboliclight.core.errors import InputError
from symboliclight.engine.aligned import allocated, lined
from symboliclight.engine.files import finite, map_tensors

MAX_POSITION = 1 << 40  # tokens
BLOCK = 16  # tokens whose 8-bit keys lie together
MAX_VISIBLE_INT8 = 50_000  # keys: with more of them in sight the sums of 8-bit ones could leave 32 bits
KEYS = ("k", "value", "anchor_k", "anchor_v")  # arrays that may be float32 or 8-bit


@dataclass(eq=False)
class State:
    """The past of B sequences. A call of the engine takes its state over and advances it in place: `copy` to fork.

    `copy.copy`, `copy.deepcopy` and pickling fork too. Threads may share a state: it is taken over once, before or
    after a copy of it is whole.
    The key of position j is in slot j mod W of the ring; `position` is negative while a row reads left padding.
    """

    position: np.ndarray  # (B,) int64 of the next token
    v: np.ndarray  # (B, D) float32 membrane after reset, and so on in float32
    h: np.ndarray  # (B, L, D), empty without the decay path
    k: np.ndarray  # (B, L, H, W, K) float32, or uint8: see `shapes`; this and what follows empty without attention
    value: np.ndarray  # the same
    gate: np.ndarray  # (B, L, W) uint8
    anchor_k: np.ndarray  # (B, L, H, A, K) or uint8
    anchor_v: np.ndarray  # the same
    anchor_gate: np.ndarray  # (B, L, A) uint8
    tails: np.ndarray  # (B, L, n, conv - 1, D) last inputs of the n convolutions of a layer, oldest first; else empty

    def __post_init__(self) -> None:
        self.taken = False
        self._lock = threading.RLock()  # held while the arrays are read, and when they change hands

    def arrays(self) -> dict[str, np.ndarray]:
        """Name -> array. Raises `InputError` if a call has advanced this state."""
        if self.taken:
            raise InputError("this state was advanced by an earlier call; go on from the state it returned, "
                             "or copy() a state before forking it")
        return {name: getattr(self, name) for name in NAMES}

    def buffers(self) -> dict[str, np.ndarray]:
        """Name -> array, keys and values as bytes: what the native step takes and changes."""
        arrays = self.arrays()
        return arrays | {name: arrays[name].view(np.uint8) for name in KEYS if arrays[name].dtype != np.uint8}

    def take(self) -> "State":
        """The same arrays under a new owner; this state is not used again."""
        with self._lock:
            new = State(**self.arrays())
            self.taken = True
        return new

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "State":
        """A new state with `function` applied to every array; all of them have B in front."""
        with self._lock:
            return State(**{name: function(array) for name, array in self.arrays().items()})

    def rows(self, index: Sequence[int] | np.ndarray) -> "State":
        """The state of the given rows, in that order, repeats allowed."""
        return self.map(lambda x: lined(x[np.asarray(index)]))

    def copy(self) -> "State":
        """An independent copy: a fork of the sequences."""
        return self.map(lined)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> "State":
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.copy().arrays(),)

    @staticmethod
    def batch(states: Sequence["State"]) -> "State":
        """One state of many sequences from several states of the same model."""
        with _held(states):
            each = [state.arrays() for state in states]
            return State(**{name: lined(np.concatenate([arrays[name] for arrays in each])) for name in each[0]})

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(array.nbytes for array in self.arrays().values())

    def save(self, path: str | Path) -> None:
        """Write one small file, whole or not at all. Raises `InputError` if that is impossible."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        path = Path(path)
        part = path.with_name(path.name + ".part")
        try:
            with self._lock:
                save_file({name: np.ascontiguousarray(array) for name, array in self.arrays().items()}, part)
            os.replace(part, path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write {path}: {error}; {remedy(error)}") from error

    @staticmethod
    def load(path: str | Path, config: ModelConfig) -> "State":
        """Read a state of a model of this config. Raises `InputError` if the file is not one."""
        arrays, _ = map_tensors(Path(path))
        if not config.conv:  # files of before there were convolutions
            arrays.setdefault("tails", np.zeros((np.size(arrays.get("position", ())), 0), np.float32))
        keys = arrays["k"].dtype if "k" in arrays else np.float32
        if keys not in (np.float32, np.uint8):
            raise InputError(f"{path} is not the state of a model; use a file that State.save wrote")
        check(arrays, shapes(config, keys), str(path))
        for name, array in arrays.items():
            if name in KEYS and array.dtype == np.uint8:
                array = array[..., BLOCK * wide(config) :].copy().view(np.float32)
            if array.dtype == np.float32 and not finite(array):
                raise InputError(f"{path}: {name} is not finite; use another state")
        return State(**{name: lined(array) for name, array in arrays.items()})


NAMES = tuple(field.name for field in fields(State))


def _restored(arrays: dict[str, np.ndarray]) -> State:
    """A state from a pickle, whose arrays lie anywhere."""
    return State(**{name: lined(array) for name, array in arrays.items()})


@contextmanager
def _held(states: Sequence[State]) -> Iterator[None]:
    """No other thread takes one of the states meanwhile. Always in one order, so that none waits in a ring."""
    with ExitStack() as stack:
        for state in sorted(states, key=id):
            stack.enter_context(state._lock)
        yield


def key_dtype(c: ModelConfig, precision: str) -> Any:
    """dtype of keys and values in a state: uint8 beside weights of 8 and 4 bits, else float32."""
    return np.uint8 if precision in ("int8", "int4") and c.window + c.n_anchors <= MAX_VISIBLE_INT8 else np.float32


def wide(c: ModelConfig) -> int:
    """Numbers of an 8-bit key: `head_dim` up to a multiple of 16."""
    return -(-c.head_dim // 16) * 16


def key_bytes(c: ModelConfig, keys: Any) -> int:
    """Bytes of the key, or the value, of one head of one token; `keys` is their dtype."""
    return wide(c) + 4 if keys == np.uint8 else 4 * c.head_dim


def shapes(c: ModelConfig, keys: Any = np.float32) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Name -> shape behind B, and dtype, of every array; `keys` is the dtype of keys and values.

    8-bit ones are unsigned, x + 128, in blocks of 16 slots, as products read them: keys (wide / 4, 16, 4), values
    (4, wide, 4 slots), and behind them 16 float32, the units of the slots (csrc/engine/engine.hpp, `block_bytes`).
    """
    decay, attention = c.n_layers * (c.paths != "attention"), c.n_layers * (c.paths != "decay")
    tails = (c.n_layers, (c.paths != "attention") + 2 * (c.paths != "decay"), c.conv - 1, c.d_model)
    block = (BLOCK * key_bytes(c, keys),)
    ring, anchors = ((attention, c.n_heads, *((-(-n // BLOCK), *block) if keys == np.uint8 else (n, c.head_dim)))
                     for n in (c.window, c.n_anchors))
    return {
        "position": ((), np.int64), "v": ((c.d_model,), np.float32), "h": ((decay, c.d_model), np.float32),
        "k": (ring, keys), "value": (ring, keys), "gate": ((attention, c.window), np.uint8),
        "anchor_k": (anchors, keys), "anchor_v": (anchors, keys), "anchor_gate": ((attention, c.n_anchors), np.uint8),
        "tails": (tails if c.conv else (0,), np.float32),
    }


def check(arrays: dict[str, np.ndarray], expected: dict[str, tuple[tuple[int, ...], Any]], where: str,
          rows: int | None = None) -> None:
    """Raise `InputError` unless `arrays` may be given to the engine: names, `shapes`, dtypes, positions, `rows`."""
    position = arrays.get("position", np.zeros(()))
    if position.ndim != 1 or arrays.keys() != expected.keys():
        raise InputError(f"{where} is not the state of a model; use a file that State.save wrote")
    for name, (shape, dtype) in expected.items():
        if arrays[name].shape != (len(position), *shape) or arrays[name].dtype != dtype:
            raise InputError(f"{where}: {name} does not fit this model at this precision; use a state that it made")
    if rows not in (None, len(position)):
        raise InputError(f"{where} is of {len(position)} sequences, the tokens of {rows}; pass matching rows")
    if any(abs(one) > MAX_POSITION for one in position.tolist()):
        raise InputError(f"{where}: position is out of range; use another state")


def initial_state(config: ModelConfig, padding: np.ndarray, keys: Any = np.float32) -> State:
    """The state before the first token of rows with `padding` (B,) absent tokens on the left."""
    arrays: dict[str, np.ndarray] = {}
    for name, (shape, dtype) in shapes(config, keys).items():
        arrays[name] = allocated((len(padding), *shape), dtype, np.zeros)
    arrays["position"] = -np.asarray(padding, np.int64)
    return State(**arrays)
