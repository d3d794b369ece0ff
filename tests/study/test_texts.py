"""Repetition and variety against hand-counted values; prompts are held out and in their language."""

import json

import numpy as np
import pytest

from symboliclight.study import read_study, texts
from symboliclight.study.results import Results
from symboliclight.study.texts import held_out, ngrams, variety, write_texts
from symboliclight.study.work import data_hash, work


def test_repetition_and_variety_are_counted_by_hand():
    # first: 1212121 has the 4-grams 1212 2121 1212 2121, half of them new; second: 345678 has three, all new
    found = variety([[1, 2, 1, 2, 1, 2, 1], [3, 4, 5, 6, 7, 8]])
    assert found["rep4"] == pytest.approx((0.5 + 0.0) / 2)
    assert found["distinct_1"] == pytest.approx(8 / 13)
    assert found["distinct_2"] == pytest.approx((2 + 5) / (6 + 5))
    assert found["distinct_3"] == pytest.approx((2 + 4) / (5 + 4))
    assert (found["texts"], found["tokens"]) == (2, 13)
    assert ngrams([1, 2], 4) == [] and variety([[1, 2]])["rep4"] is None


@pytest.fixture
def short(monkeypatch):
    """The documents of the small shards have few tokens."""
    monkeypatch.setattr(texts, "PROMPT_TOKENS", 8)
    monkeypatch.setattr(texts, "TOKENS", 12)
    monkeypatch.setattr(texts, "PROMPTS", 3)


def test_prompts_are_starts_of_test_documents_in_their_language(short, small_shards, small_tokenizer):
    found = held_out(small_shards, small_tokenizer)
    assert {name: len(own) for name, own in found.items()} == {"zh": 3, "en": 3}
    for language, domain in (("zh", "chinese"), ("en", "english")):
        every = small_shards.tokens("test", domain).astype(np.int64)
        for text in found[language]:
            assert len(text) == 20 and text[0] == small_tokenizer.bos_id
            assert any(np.array_equal(every[i : i + 20], text) for i in np.flatnonzero(every == text[0]))


def test_the_same_seed_writes_the_same_texts(short, small_model, small_shards):
    once = write_texts(small_model, small_shards, 5)
    assert once == write_texts(small_model, small_shards, 5) != write_texts(small_model, small_shards, 6)
    assert set(once["rules"]) == {"top-k", "adaptive"} and once["rules"]["top-k"]["zh"]["tokens"] == 3 * 12
    assert once["held_out"]["en"]["rep4"] is not None and len(once["samples"]) == 4


def test_texts_are_added_to_a_result_that_lacks_them(short, study_file, small_shards, tmp_path):
    def go(folder):
        study = read_study(study_file)
        results = Results(tmp_path / "results", data_hash(small_shards))
        return work(study, study.runs[:1], small_shards, tmp_path / folder, results).done

    assert go("work") == ["v1-s1-t640"]
    path, = (tmp_path / "results").iterdir()
    before = json.loads(path.read_text())
    study_file.write_text(study_file.read_text().replace("lr = 3e-3", "lr = 3e-3\ngenerate = true", 1))
    assert "generation" not in before and go("elsewhere") == []  # no weights there to write with
    assert go("work") == ["v1-s1-t640"] and go("work") == []
    after = json.loads(path.read_text())
    assert after["generation"]["rules"]["adaptive"]["en"]["tokens"] == 36
    assert {key: after[key] for key in before} == before
