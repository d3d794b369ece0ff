"""n-grams, MinHash against slow loops, and quotes of evaluation sets."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symboliclight.core.errors import InputError
from symboliclight.data.minhash import NearDuplicates
from symboliclight.data.ngrams import Hasher, Quotes, units

MASK = 2**64 - 1
WORDS = [f"word{i}" for i in range(1000)]


def grams(text, n=5, hasher=None):
    hasher = hasher or Hasher()
    return hasher.ngrams(hasher.values(text), n)


def test_units_are_words_and_single_chinese_characters():
    assert units("Don't STOP, 小白兔 went to A4纸!") == ["don", "t", "stop", "小", "白", "兔", "went", "to", "a4", "纸"]


@given(st.text(alphabet="ab 小白", max_size=60), st.integers(1, 6))
def test_ngrams_are_the_polynomial_of_their_units_and_equal_where_the_units_are(text, n):
    found = units(text)
    values = [int.from_bytes(hashlib.blake2b(u.encode(), digest_size=8).digest(), "little") for u in found]
    expected = [sum(v * pow(0x9E3779B97F4A7C15, n - 1 - i, 2**64) for i, v in enumerate(values[k:k + n])) & MASK
                for k in range(max(0, len(found) - n + 1))]
    assert grams(text, n).tolist() == expected
    assert len(set(expected)) == len({tuple(found[k:k + n]) for k in range(len(expected))})


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, MASK), min_size=1, max_size=50))
def test_a_signature_is_the_least_of_each_hash(ngrams):
    near = NearDuplicates(2, 3)
    factors, shifts = near._factor[:, 0].tolist(), near._shift[:, 0].tolist()
    expected = [min((a * x + b) & MASK for x in ngrams) for a, b in zip(factors, shifts, strict=True)]
    assert near.signature(np.array(ngrams, np.uint64)).tolist() == expected


def test_a_signature_does_not_depend_on_the_chunks(monkeypatch):
    ngrams = np.random.default_rng(0).integers(0, MASK, 500, np.uint64)
    whole = NearDuplicates(2, 3).signature(ngrams)
    monkeypatch.setattr("symboliclight.data.minhash._CHUNK", 7)
    assert (NearDuplicates(2, 3).signature(ngrams) == whole).all()


def test_equal_hashes_estimate_the_share_of_common_ngrams():
    rng = np.random.default_rng(1)
    near = NearDuplicates(64, 8)  # 512 hashes: standard error 0.022 at a half
    for common in (100, 300, 500):
        pool = rng.integers(0, MASK, 1000 - common, np.uint64)
        first, second = pool[:500], np.concatenate([pool[:common], pool[500:]])
        jaccard = common / (1000 - common)
        assert np.mean(near.signature(first) == near.signature(second)) == pytest.approx(jaccard, abs=0.07)


def edited(text, share, rng):
    return " ".join(rng.choice(WORDS) if rng.random() < share else word for word in text.split())


def test_near_duplicates_are_found_and_different_texts_are_not():
    """5-grams of a text with 1% of its words changed: 5% are others, Jaccard 0.90; with a third changed, below 0.1."""
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(WORDS, 300)) for _ in range(50)]
    near = NearDuplicates(14, 8)
    firsts = [near.cluster(grams(text), bytes([i])) for i, text in enumerate(texts)]
    assert len({id(c) for c in firsts}) == 50
    close = [near.cluster(grams(edited(text, 0.01, rng)), b"x") for text in texts]
    assert sum(a is b for a, b in zip(firsts, close, strict=True)) >= 48
    far = [near.cluster(grams(edited(text, 0.33, rng)), b"y") for text in texts]
    assert not any(a is b for a, b in zip(firsts, far, strict=True))


def test_a_text_shorter_than_an_ngram_is_like_no_other():
    near = NearDuplicates(14, 8)
    assert near.cluster(grams("one two"), b"1") is not near.cluster(grams("one two"), b"2")


@pytest.fixture
def sets(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.json").write_text(json.dumps([["深" * 3, {"question": "甲乙丙丁戊己庚辛壬癸子丑寅卯"}]]))
    (tmp_path / "y.jsonl").write_text(json.dumps({"text": "one two three four five six seven eight nine ten eleven "
                                                          "twelve thirteen fourteen"}) + "\n\n")
    (tmp_path / "z.txt").write_text("too short to matter\n")
    return tmp_path


def test_a_document_quotes_a_set_with_thirteen_units_in_a_row_but_not_with_twelve(sets):
    hasher = Hasher()
    quotes = Quotes(sets, 13, hasher)
    assert (quotes.files, len(quotes)) == (3, 4)
    found = {text: quotes.found_in(hasher.values(text)) for text in (
        "He said: TWO three, four five six seven eight nine ten eleven twelve thirteen fourteen!",
        "two three four five six seven eight nine ten eleven twelve thirteen and fourteen",
        "说：乙丙丁戊己庚辛，壬癸子丑寅卯。", "乙丙丁戊己庚辛壬癸子丑寅", "", "too short to matter")}
    assert list(found.values()) == [True, False, True, False, False, False]


def test_folders_without_sets_and_damaged_sets_are_refused(tmp_path):
    with pytest.raises(InputError, match="no evaluation sets"):
        Quotes(tmp_path, 13, Hasher())
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"bad.jsonl is damaged"):
        Quotes(tmp_path, 13, Hasher())
