"""What the runtime reads much of begins at a cache line: weights in memory and in a mapped folder, and states."""

import numpy as np
import pytest

import symboliclight.engine
from symboliclight.core.checkpoint import LINE
from symboliclight.engine import State
from symboliclight.engine.aligned import allocated, lined, together
from symboliclight.engine.model import export

MANY = 4096  # bytes: smaller arrays may lie anywhere


def crossing(arrays):
    return [name for name, x in arrays if x is not None and x.nbytes >= MANY and x.ctypes.data % LINE]


def matrices(engine):
    return [(m.site, m.data) for m in engine.weights.matrices if m.site != "embedding"]


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "int4", "certified", "certified-bfloat16"])
def test_weights_in_memory_and_exported(small_checkpoint, tmp_path, precision):
    packed = [(site, x) for site, x in matrices(symboliclight.engine.load(small_checkpoint, precision=precision))
              if x.flags.writeable]  # not those that lie in the file as they are
    assert len(packed) > 4 and not crossing(packed)
    export(small_checkpoint, tmp_path / "out", precision)
    mapped = symboliclight.engine.load(tmp_path / "out")
    assert not any(x.flags.writeable for _, x in matrices(mapped))
    assert not crossing((m.site, part) for m in mapped.weights.matrices for part in (m.data, m.scale))


def test_states(small_checkpoint, tmp_path):
    engine = symboliclight.engine.load(small_checkpoint, precision="int8")
    _, state = engine(np.arange(40).reshape(2, 20))
    state.save(tmp_path / "state")
    states = [engine.initial_state(3), state.copy(), state.rows([1]), State.batch([state, state]),
              State.load(tmp_path / "state", engine.config), state]
    assert not [crossing(s.arrays().items()) for s in states if crossing(s.arrays().items())]


def test_a_lined_array_is_a_copy():
    x = np.arange(12, dtype=np.uint8).reshape(3, 4)[:, 1:]
    y = lined(x)
    np.testing.assert_array_equal(y, x)
    assert y.flags.c_contiguous and not np.shares_memory(x, y)
    assert not allocated((5, 3), np.float32, np.zeros).any()


def test_arrays_that_are_brought_together_lie_one_behind_the_other_and_mapped_ones_stay():
    mapped = np.arange(5)
    mapped.flags.writeable = False
    arrays = {"a": np.arange(7, dtype=np.float32), "mapped": mapped, "b": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    found = together(arrays)
    assert found.keys() == arrays.keys() and found["mapped"] is mapped
    for name, x in arrays.items():
        np.testing.assert_array_equal(found[name], x)
        assert found[name].dtype == x.dtype
    assert found["b"].ctypes.data == found["a"].ctypes.data + LINE and found["a"].ctypes.data % LINE == 0
