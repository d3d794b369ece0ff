"""Documents laid out whole: rows by hand, every token once an epoch, resuming; loss on answers only."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symboliclight.core.errors import InputError
from symboliclight.data.batches import Batches
from symboliclight.data.packing import PADDING, Documents, Stream, _best_fit
from symboliclight.data.turns import Answers, encode_document

BOS = 1


def domain(*lengths):
    """Documents of these lengths: bos, and then numbers that occur once."""
    tokens = np.arange(sum(lengths)) + 100
    tokens[np.cumsum([0, *lengths[:-1]])] = BOS
    return tokens


def packed(tokens, seq_len, key="k"):
    return Documents(tokens, seq_len, key, BOS, "d")


class TurnShards:
    """One training domain of given ids, with the tokenizer that knows the special pieces."""

    path = Path("shards")
    data_hash = tokenizer_hash = "h"

    def __init__(self, tokenizer, ids):
        self.repeats = {}
        self._tokenizer, self._ids = tokenizer, np.array(ids)
        self.splits = {"train": {"d": {"tokens": len(ids)}}}

    def domains(self, split):
        return ["d"]

    def tokens(self, split, name):
        return self._ids

    def tokenizer(self):
        return self._tokenizer


def test_rows_by_hand():
    """Capacity 5: lengths 5, 3, 2 and 1 make two rows; the free places are padding, which counts for nothing."""
    packing = packed(domain(3, 5, 2), 4)
    assert packing.windows == 2
    rows = sorted((packing.window(i) for i in range(2)), key=lambda window: window.positions[0])
    assert sorted(rows[0].positions.tolist()) == [0, 1, 2, 8, 9]
    assert rows[1].positions.tolist() == [3, 4, 5, 6, 7]
    assert all(row.counts.all() for row in rows)
    short = packed(domain(3), 4).window(0)
    assert short.positions.tolist() == [0, 1, 2, PADDING, PADDING]
    assert short.counts.tolist() == [True, True, True, False, False]


def test_a_long_document_is_cut_and_its_tail_follows_a_beginning():
    """12 tokens at T = 4 are pieces of 5, 5 and 4 that overlap by one; 4 is then alone, 1 fits beside it."""
    packing = packed(domain(12, 1), 4)
    rows = {tuple(window.positions.tolist()): window.counts.tolist() for window in map(packing.window, range(3))}
    assert rows.keys() == {(0, 1, 2, 3, 4), (4, 5, 6, 7, 8), (12, 8, 9, 10, 11)}
    assert rows[12, 8, 9, 10, 11] == [True, False, True, True, True]  # 8 was a target before the cut


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 16), st.integers(0, 3))
def test_every_epoch_holds_each_token_once_as_a_target_and_cuts_no_document_that_fits(lengths, seq_len, epoch):
    tokens = domain(*lengths)
    packing = packed(tokens, seq_len)
    starts = np.cumsum([0, *lengths[:-1]])
    targets, whole = [], set()
    for i in range(packing.windows):
        positions, counts = packing.window(epoch * packing.windows + i)
        assert positions.shape == counts.shape == (seq_len + 1,)
        assert not counts[positions == PADDING].any()
        targets += positions[counts].tolist()
        row = positions.tolist()
        whole |= {j for j, (start, size) in enumerate(zip(starts, lengths, strict=True))
                  if start in row and row[row.index(start):][:size] == list(range(start, start + size))}
    assert sorted(targets) == list(range(len(tokens)))
    assert whole == {j for j, size in enumerate(lengths) if size <= seq_len + 1}


@given(st.lists(st.integers(1, 12), max_size=80))
def test_best_fit_is_the_plain_search_for_the_tightest_row(lengths):
    lengths = sorted(lengths, reverse=True)
    rooms, found = [], _best_fit(np.array(lengths, int), 12)
    for length, row in zip(lengths, found[0], strict=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            assert rooms[row] == min(fitting)
        else:
            rooms.append(12)
        rooms[row] -= length
    assert found[1] == len(rooms)


def test_epochs_differ_and_a_key_fixes_them():
    tokens = domain(*[3, 5, 2, 7, 9, 4] * 10)

    def rows(key, epoch):
        packing = packed(tokens, 8, key)
        return [packing.window(epoch * packing.windows + i).positions.tolist() for i in range(packing.windows)]

    assert rows("k", 1) == rows("k", 1)
    assert sorted(rows("k", 0)) != sorted(rows("k", 1))  # other documents together, not only another order
    assert rows("k", 0) != rows("other", 0)


def test_rows_begin_with_documents_where_a_stream_rarely_does():
    tokens = domain(*[30, 50, 20, 12, 8, 70] * 20)

    def share(packing):
        return np.mean([tokens[packing.window(i).positions[0]] == BOS for i in range(packing.windows)])

    assert share(packed(tokens, 64)) > 0.95  # ends of the documents of 70 may be left over among themselves
    assert share(Stream(tokens, 64, "k", "d")) < 0.2


def test_tokens_that_do_not_begin_with_a_document_are_refused():
    with pytest.raises(InputError, match="does not begin with a document"):
        packed(np.arange(100) + 50, 8)


def batches(shards, cursor=None, seq_len=16, **options):
    return Batches(shards, "train", {}, seq_len, 2, 7, cursor, **options)


def test_batches_pad_with_targets_that_do_not_count(small_tokenizer):
    shards = TurnShards(small_tokenizer, [small_tokenizer.bos_id, 300, 301, small_tokenizer.eos_id])
    tokens, targets = batches(shards, packing="documents", seq_len=6).next()
    pad = small_tokenizer.pad_id
    assert tokens[0].tolist() == [small_tokenizer.bos_id, 300, 301, small_tokenizer.eos_id, pad, pad]
    assert targets[0].tolist() == [300, 301, small_tokenizer.eos_id, -1, -1, -1]


@pytest.mark.parametrize("options", [{"packing": "documents"}, {"loss": "answers"},
                                     {"packing": "documents", "loss": "answers"}])
def test_a_resumed_run_draws_what_the_whole_run_would(small_shards, small_tokenizer, options):
    ids = [i for n in range(50) for i in encode_document(
        small_tokenizer, [("user", f"question {n}"), ("assistant", "answer " * (n % 7))])]
    shards = TurnShards(small_tokenizer, ids)
    whole = batches(shards, **options)
    drawn = [whole.next() for _ in range(120)]
    assert whole.epochs["d"] > 2
    first = batches(shards, **options)
    for _ in range(47):
        first.next()
    resumed = batches(shards, json.loads(json.dumps(first.cursor)), **options)
    for tokens, targets in drawn[47:]:
        again = resumed.next()
        assert (again[0] == tokens).all() and (again[1] == targets).all()


def test_a_cursor_of_another_packing_or_loss_is_refused_and_an_old_one_is_a_stream(small_shards):
    cursor = batches(small_shards, packing="documents").cursor
    with pytest.raises(InputError, match="packing"):
        batches(small_shards, cursor)
    old = {key: value for key, value in batches(small_shards).cursor.items() if key not in ("packing", "loss")}
    batches(small_shards, old).next()
    with pytest.raises(InputError, match="packing 'stream', now it is 'documents'"):
        batches(small_shards, old, packing="documents")


def test_answers_by_hand(small_tokenizer):
    t = small_tokenizer
    user, assistant, end = t.special("user"), t.special("assistant"), t.special("end")
    ids = np.array([t.bos_id, user, 300, end, assistant, 301, 302, end, user, 303, end, assistant, 304, end, t.eos_id])
    held = Answers(ids, t).hold(np.arange(len(ids)))
    assert np.flatnonzero(held).tolist() == [5, 6, 7, 12, 13]
    assert not Answers(ids, t).hold(np.array([PADDING])).any()


def test_targets_outside_answers_do_not_count_wherever_a_window_begins(small_tokenizer):
    """A stream cuts turns; a window that begins inside one still knows whose it is."""
    t = small_tokenizer
    ids = [t.bos_id, t.special("user"), *[300] * 10, t.special("end"), t.special("assistant"), *[301] * 10,
           t.special("end"), t.eos_id]
    drawn = batches(TurnShards(t, ids), seq_len=5, loss="answers")
    kept = []
    for _ in range(40):
        tokens, targets = drawn.next()
        assert set(targets[targets >= 0].tolist()) <= {301, t.special("end")}
        assert not ((tokens == 300) & (targets >= 0)).any()
        assert (targets[np.isin(tokens, [t.special("assistant"), 301])] >= 0).all()
        kept += targets[targets >= 0].tolist()
    assert {301, t.special("end")} == set(kept)


def test_a_text_without_turns_counts_whole(small_tokenizer):
    t = small_tokenizer
    user, assistant, end = t.special("user"), t.special("assistant"), t.special("end")
    talk = [t.bos_id, user, 300, end, assistant, 301, end, t.eos_id]
    text = [t.bos_id, 302, 303, t.eos_id]
    ids = np.array([*talk, *text, *talk, *text])
    assert np.flatnonzero(Answers(ids, t).hold(np.arange(len(ids)))).tolist() == [5, 6, 9, 10, 11, 17, 18, 21, 22, 23]
    assert np.flatnonzero(Answers(ids[9:], t).hold(np.arange(3))).tolist() == []  # cut: nobody knows what it is of


def test_texts_without_any_turn_are_refused(small_shards):
    with pytest.raises(InputError, match="holds no turn of the assistant"):
        batches(small_shards, loss="answers")
