"""State: constant size, fork, batch, rows, save and restore; a state is used once."""

import copy
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.numpy

import symboliclight.engine
from symboliclight.core.errors import InputError
from symboliclight.engine import State
from symboliclight.engine import state as module
from symboliclight.engine.state import wide


@pytest.fixture(scope="module")
def engine(small_checkpoint):
    return symboliclight.engine.load(small_checkpoint, threads=2)


def test_a_saved_state_goes_on_with_the_same_bits(engine, tmp_path):
    tokens = np.arange(60)[None]
    whole, _ = engine(tokens)
    _, state = engine(tokens[:, :37])
    state.save(tmp_path / "state")
    restored = State.load(tmp_path / "state", engine.config)
    np.testing.assert_array_equal(engine(tokens[:, 37:], restored)[0], whole[:, 37:])
    np.testing.assert_array_equal(engine(tokens[:, 37:], state)[0], whole[:, 37:])


def test_the_size_does_not_depend_on_the_length(engine):
    _, short = engine(np.zeros((1, 3), np.int64))
    _, long = engine(np.zeros((1, 600), np.int64))
    assert short.nbytes == long.nbytes


def test_forks_do_not_disturb_each_other(engine):
    _, state = engine(np.arange(30)[None])
    a, b = np.array([[5, 6]]), np.array([[7, 8]])
    fork = state.copy()
    first, _ = engine(a, state)
    second, _ = engine(b, fork)
    np.testing.assert_array_equal(first[0], engine(np.append(np.arange(30), a)[None])[0][0, 30:])
    np.testing.assert_array_equal(second[0], engine(np.append(np.arange(30), b)[None])[0][0, 30:])


@pytest.mark.parametrize("fork", [copy.copy, copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_every_way_to_copy_a_state_forks_it(engine, fork):
    _, state = engine(np.arange(30)[None])
    other = fork(state)
    assert all(x.ctypes.data % 64 == 0 for x in other.arrays().values() if x.size)
    first, _ = engine(np.array([[5, 6]]), state)
    second, _ = engine(np.array([[7, 8]]), other)
    for logits, tail in ((first, [5, 6]), (second, [7, 8])):
        np.testing.assert_array_equal(logits[0], engine(np.append(np.arange(30), tail)[None])[0][0, 30:])
    with pytest.raises(InputError, match="advanced"):
        fork(state)


def slowly(function):
    """As `function`, with time for other threads to come between it and what follows."""
    def slow(*arguments):
        found = function(*arguments)
        time.sleep(0.005)
        return found
    return slow


def test_two_threads_never_take_one_state_twice(engine, monkeypatch):
    def takes(state):
        try:
            return state.take() is not None
        except InputError:
            return False

    monkeypatch.setattr(State, "arrays", slowly(State.arrays))
    state = engine.initial_state(1)
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(takes, [state] * 4)) == 1


@pytest.mark.parametrize("how", [State.copy, lambda s: s.rows([0]), lambda s: State.batch([s, s]).rows([1]),
                                 lambda s: pickle.loads(pickle.dumps(s))], ids=["copy", "rows", "batch", "pickle"])
def test_a_copy_beside_a_call_is_whole(engine, monkeypatch, how):
    tokens, tail = np.arange(30)[None], np.array([[5]])
    expected = engine(np.append(tokens, tail)[None])[0][0, -1]
    _, state = engine(tokens)
    begun = threading.Event()

    def lined(array, copied=module.lined):
        begun.set()
        return slowly(copied)(array)

    monkeypatch.setattr(module, "lined", lined)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(how, state)
        begun.wait()
        engine(tail, state)  # waits until the copy is whole
        np.testing.assert_array_equal(engine(tail, found.result())[0][0, -1], expected)


def test_a_state_is_saved_whole_beside_a_call(engine, monkeypatch, tmp_path):
    tokens, tail = np.arange(30)[None], np.array([[5]])
    expected = engine(np.append(tokens, tail)[None])[0][0, -1]
    _, state = engine(tokens)
    begun = threading.Event()

    def save_file(arrays, path, saved=safetensors.numpy.save_file):
        begun.set()
        time.sleep(0.05)
        saved(arrays, path)

    monkeypatch.setattr(safetensors.numpy, "save_file", save_file)
    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(state.save, tmp_path / "state")
        begun.wait()
        engine(tail, state)
        saving.result()
    np.testing.assert_array_equal(engine(tail, State.load(tmp_path / "state", engine.config))[0][0, -1], expected)


def test_an_engine_pickles_as_its_folder(engine, small_checkpoint):
    again = pickle.loads(pickle.dumps(symboliclight.engine.load(small_checkpoint, "int8", threads=1, sparse=False)))
    assert (again.precision, again.threads, again.source[3]) == ("int8", 1, False)
    assert copy.copy(engine) is engine and copy.deepcopy([engine])[0] is engine
    with pytest.raises(TypeError, match="made from weights in memory"):
        pickle.dumps(symboliclight.engine.Engine(engine.config, engine.weights, 1))


def test_a_state_that_was_advanced_is_refused(engine):
    _, state = engine(np.arange(5)[None])
    engine(np.array([[1]]), state)
    with pytest.raises(InputError, match="copy"):
        engine(np.array([[1]]), state)


def test_batches_are_put_together_and_taken_apart(engine):
    states = [engine(np.arange(n)[None])[1] for n in (3, 20, 50)]
    both = State.batch(states).rows([2, 0])
    logits, _ = engine(np.array([[9], [9]]), both)
    np.testing.assert_array_equal(logits[0], engine(np.array([[9]]), states[2])[0][0])
    np.testing.assert_array_equal(logits[1], engine(np.array([[9]]), states[0])[0][0])


@pytest.mark.parametrize("unit", [np.nan, np.inf])
def test_short_keys_in_units_that_are_no_numbers_are_refused(small_checkpoint, tmp_path, unit):
    engine = symboliclight.engine.load(small_checkpoint, "int8", threads=1)
    _, state = engine(np.arange(5)[None])
    assert state.k.dtype == np.uint8 and state.k.shape[-1] == 16 * (wide(engine.config) + 4)
    state.save(tmp_path / "sound")
    State.load(tmp_path / "sound", engine.config)
    state.value[0, 1, 0, 0, -4:] = np.frombuffer(np.float32(unit).tobytes(), np.uint8)
    state.save(tmp_path / "state")
    with pytest.raises(InputError, match="value is not finite"):
        State.load(tmp_path / "state", engine.config)


def test_a_damaged_or_foreign_state_is_refused(engine, tmp_path):
    _, state = engine(np.arange(5)[None])
    file = tmp_path / "state"
    for change in ({"v": state.v[:, :-1]}, {"h": np.full_like(state.h, np.nan)}, {"position": np.array([2**60])},
                   {"k": state.k.astype(np.float64)}):
        try:
            State(**state.arrays() | change).save(file)
            with pytest.raises(InputError):
                State.load(file, engine.config)
        finally:
            file.unlink()
    state.save(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged"):
        State.load(file, engine.config)
    with pytest.raises(InputError, match="sequences"):
        engine(np.zeros((2, 1), np.int64), state)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_computes_the_same(engine):
    expected = engine(np.arange(9)[None])[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(engine(np.arange(9)[None])[0], expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(engine(np.arange(9)[None])[0], expected)


def test_a_refused_state_is_not_lost(engine, small_checkpoint):
    other, tokens = symboliclight.engine.load(small_checkpoint, "int8", threads=1), np.arange(5)[None]
    _, state = engine(tokens)
    for call in (other, other.last, other.trace):
        with pytest.raises(InputError, match="does not fit"):
            call(tokens, state)
    assert engine(tokens, state)[1].position.tolist() == [10]
