"""Training batches: shifting, shares, epochs and resuming; evaluation windows."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symboliclight.core.errors import InputError
from symboliclight.data.batches import Batches, eval_windows


class ArrayShards:
    """Shards whose tokens count up: domain number * 10,000 + position."""

    path = Path("shards")
    tokenizer_hash = "t" * 64

    def __init__(self, **sizes):
        self.data_hash = str(sizes)
        self.repeats = {}
        self._tokens = {name: np.arange(size) + 10_000 * i for i, (name, size) in enumerate(sizes.items())}
        self.splits = {"train": {name: {"tokens": size} for name, size in sizes.items()}}

    def domains(self, split):
        return sorted(name for name, counts in self.splits[split].items() if counts["tokens"])

    def tokens(self, split, domain):
        return self._tokens[domain]


SHARDS = ArrayShards(a=1000, b=333, c=57)


def make(weights=None, seq_len=8, batch_size=4, seed=1, cursor=None, shards=SHARDS):
    return Batches(shards, "train", weights or {}, seq_len, batch_size, seed, cursor)


def draw(batches, count):
    return [batches.next() for _ in range(count)]


def same(first, second):
    return all((x == u).all() and (y == v).all() for (x, y), (u, v) in zip(first, second, strict=True))


def test_targets_are_the_tokens_one_later_along_the_ring():
    for tokens, targets in draw(make(), 50):
        assert tokens.shape == targets.shape == (4, 8)
        assert tokens.dtype == targets.dtype == np.int64
        assert (tokens[:, 1:] == targets[:, :-1]).all()
        for row in np.concatenate([tokens, targets[:, -1:]], axis=1):
            size = {0: 1000, 1: 333, 2: 57}[row[0] // 10_000]
            assert (np.diff(row % 10_000) % size == 1).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.integers(1, 300))
def test_shares_follow_the_weights_as_closely_as_whole_sequences_allow(weights, rows):
    batches = make(dict(zip("abc", weights, strict=True)), batch_size=rows)
    batches.next()
    for name, weight in zip("abc", weights, strict=True):
        assert abs(batches.cursor["drawn"][name] - rows * weight / sum(weights)) < 2


def test_without_weights_domains_share_in_proportion_to_their_tokens():
    batches = make(batch_size=1390)
    batches.next()
    assert batches.cursor["drawn"] == {"a": 1000, "b": 333, "c": 57}


def test_a_domain_of_weight_zero_is_never_drawn():
    batches = make({"a": 1, "b": 0})
    assert all((tokens < 10_000).all() for tokens, _ in draw(batches, 50))
    assert set(batches.epochs) == {"a"}


@pytest.mark.parametrize(("size", "seq_len"), [(1000, 8), (57, 8), (9, 8), (64, 8), (333, 1)])
def test_an_epoch_shows_each_token_once_except_less_than_a_window(size, seq_len):
    batches = make(seq_len=seq_len, batch_size=1, shards=ArrayShards(a=size))
    for _ in range(3):
        seen = np.concatenate([tokens[0] for tokens, _ in draw(batches, size // seq_len)])
        assert len(set(seen)) == len(seen) == size - size % seq_len


def test_each_epoch_has_its_own_order_and_offset():
    batches = make(seq_len=8, batch_size=125, shards=ArrayShards(a=1000))
    starts = [tokens[:, 0] for tokens, _ in draw(batches, 3)]
    assert len({int(s[0]) % 8 for s in starts}) > 1
    assert all((np.sort(x) != np.sort(y)).any() for x, y in pairwise(starts))
    assert all((np.diff(s) < 0).any() for s in starts)


def test_epochs_are_counted_per_domain():
    batches = make({"a": 1, "c": 1}, batch_size=14)
    batches.next()
    assert batches.epochs == {"a": 7 / 125, "c": 1.0}
    batches.next()
    assert batches.epochs == {"a": 14 / 125, "c": 2.0}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.integers(0, 2**31), st.integers(1, 9))
def test_a_cursor_resumes_to_exactly_the_same_batches(done, seed, batch_size):
    batches = make({"a": 0.5, "b": 0.3, "c": 0.2}, seed=seed, batch_size=batch_size)
    draw(batches, done)
    cursor = json.loads(json.dumps(batches.cursor))
    resumed = make({"c": 0.2, "b": 0.3, "a": 0.5}, seed=seed, batch_size=batch_size, cursor=cursor)
    assert resumed.epochs == batches.epochs
    assert same(draw(batches, 10), draw(resumed, 10))
    assert resumed.cursor == batches.cursor


def test_a_cursor_is_not_changed_by_later_draws():
    batches = make()
    cursor = batches.cursor
    batches.next()
    assert sum(cursor["drawn"].values()) == 0


def test_seeds_decide_the_order():
    assert same(draw(make(seed=3), 5), draw(make(seed=3), 5))
    assert not same(draw(make(seed=3), 5), draw(make(seed=4), 5))


def test_the_order_is_pinned():
    assert make().next()[0][:, 0].tolist() == [32, 10294, 952, 296]


@pytest.mark.parametrize("change", [{"seed": 2}, {"weights": {"a": 1}}, {"seq_len": 9},
                                    {"shards": ArrayShards(a=1000, b=333, c=58)}])
def test_a_cursor_of_another_run_is_refused(change):
    with pytest.raises(InputError, match="the run to resume was made with"):
        make(cursor=make().cursor, **change)


@pytest.mark.parametrize("drawn", [None, {}, {"a": 1, "b": 1}, {"a": 1, "b": 1, "c": -1}, {"a": 1, "b": 1, "c": "x"}])
def test_a_damaged_cursor_is_refused(drawn):
    with pytest.raises(InputError, match=r"cursor .* is damaged"):
        make(cursor=make().cursor | {"drawn": drawn})


@pytest.mark.parametrize(("options", "message"), [
    ({"weights": {"z": 1}}, "unknown domain z; shards has: a, b, c"), ({"weights": {"a": -1}}, "not negative"),
    ({"weights": {"a": 0}}, "not all 0"), ({"weights": {"a": float("nan")}}, "finite"),
    ({"seq_len": 57}, "domain 'c' has 57 tokens, too few for one window of 57"), ({"seq_len": 0}, "must be positive"),
    ({"batch_size": 0}, "must be positive"), ({"shards": ArrayShards(a=0)}, "no tokens in split 'train'")])
def test_nonsense_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


@given(st.integers(2, 400), st.integers(1, 50), st.integers(1, 500), st.integers(1, 9))
def test_evaluation_windows_are_fixed_disjoint_and_within_the_budget(size, seq_len, max_tokens, batch_size):
    shards = ArrayShards(a=size)
    parts = list(eval_windows(shards, "train", "a", seq_len, max_tokens, batch_size))
    assert same(parts, eval_windows(shards, "train", "a", seq_len, max_tokens, batch_size))
    tokens, targets = (np.concatenate(side) for side in zip(*parts, strict=True))
    length = min(seq_len, size - 1)
    assert tokens.shape[1] == length
    assert (targets == tokens + 1).all()
    assert len(np.unique(targets)) == targets.size <= max(max_tokens, length)
    if max_tokens >= size:
        assert targets.size == (size - 1) // length * length
    assert all(len(part) == batch_size for part, _ in parts[:-1])


def test_evaluation_windows_are_spread_evenly():
    starts = [int(tokens[0, 0]) for tokens, _ in eval_windows(ArrayShards(a=1001), "train", "a", 10, 40, 1)]
    assert starts == [0, 250, 500, 750]


def test_evaluation_of_one_token_or_nonsense_sizes_is_refused():
    with pytest.raises(InputError, match="one token"):
        list(eval_windows(ArrayShards(a=1), "train", "a", 8, 100))
    with pytest.raises(InputError, match="positive"):
        list(eval_windows(SHARDS, "train", "a", 8, 0))
