"""The balanced sample that tokenizers are trained on."""

import pytest

from symboliclight.data.corpus import CorpusOptions, build_corpus
from symboliclight.data.sample import balanced_sample, is_chinese

ENGLISH = {"web": 300, "books": 30}  # documents
CHINESE = {"poems": 200}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    for name, count in ENGLISH.items():
        (folder / f"{name}.txt").write_text("\n\n".join(f"{name} number {i:05} in plain words" for i in range(count)))
    for name, count in CHINESE.items():
        (folder / f"{name}.txt").write_text("\n\n".join(f"第{i:05}首春眠不覺曉處處聞啼鳥" for i in range(count)))
    sources = {name: [folder / f"{name}.txt"] for name in ENGLISH | CHINESE}
    return build_corpus(sources, folder / "out", CorpusOptions(0, 0))


def bytes_of(texts):
    return sum(len(text.encode()) for text in texts)


def test_both_languages_give_the_same_number_of_bytes_and_domains_share_evenly(corpus):
    sample = balanced_sample(corpus, 4000)
    texts = list(sample.texts())
    assert sample.bytes == {"chinese": 2000, "other": 2000}
    assert abs(bytes_of(t for t in texts if is_chinese(t)) - 2000) <= 3  # the last document is cut between characters
    assert abs(bytes_of(t for t in texts if t.startswith("web")) - 1000) <= 40
    assert abs(bytes_of(t for t in texts if t.startswith("book")) - 1000) <= 40


def test_the_larger_language_is_cut_to_the_smaller_and_small_domains_give_all_they_have(corpus):
    sample = balanced_sample(corpus, 10**9)
    english = sum(corpus.counts(name, "train")["bytes"] for name in ENGLISH)
    chinese = sum(corpus.counts(name, "train")["bytes"] for name in CHINESE)
    assert sample.bytes == {"chinese": min(english, chinese), "other": min(english, chinese)}
    assert sum(text.startswith("books") for text in sample.texts()) == ENGLISH["books"]


def test_one_language_alone_has_the_whole_budget(corpus, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"only english {i}" for i in range(99)))
    alone = build_corpus({"a": [tmp_path / "a.txt"]}, tmp_path / "out", CorpusOptions(0, 0))
    assert balanced_sample(alone, 500).bytes == {"chinese": 0, "other": 500}


def test_the_seed_decides_and_nothing_else(corpus):
    first = list(balanced_sample(corpus, 1000, seed=1).texts())
    assert first == list(balanced_sample(corpus, 1000, seed=1).texts())
    assert first != list(balanced_sample(corpus, 1000, seed=2).texts())


@pytest.mark.parametrize(("text", "chinese"), [
    ("玄德曰：何以迎之", True), ("Configure\n配置单选按钮设置", True), ("The word 春 means spring", False), ("", False),
    ("かな", False), ("𠀀𠀁", True)])
def test_languages_are_told_apart(text, chinese):
    assert is_chinese(text) == chinese
