"""Building a corpus: cleaning, deduplication, splits, and folders that appear whole or not at all."""

import hashlib
import json
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symboliclight.core import lock
from symboliclight.core.errors import InputError, LeftOut
from symboliclight.data.corpus import (
    SPLITS,
    Corpus,
    CorpusOptions,
    build_corpus,
    clean,
    demo_sources,
    folder_sources,
    split_of,
)
from symboliclight.data.files import FORMAT

words = st.lists(st.sampled_from(["春", "眠", "dog", "cat", "x  y", "7"]), min_size=1, max_size=4).map(" ".join)


def write(path, documents):
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents), encoding="utf-8")
    return path


def all_documents(corpus):
    return [(domain, split, text) for domain in corpus.domains for split in SPLITS
            for text in corpus.documents(domain, split)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return build_corpus(demo_sources(), tmp_path_factory.mktemp("demo") / "corpus", CorpusOptions(0.05, 0.05))


def test_the_demo_corpus_is_whole_and_every_domain_has_every_split(demo):
    assert demo.domains == ["code", "en_fiction", "en_reference", "math", "zh_fiction", "zh_poetry"]
    assert sum(demo.counts(d, s)["bytes"] for d in demo.domains for s in SPLITS) == 6_599_510
    assert sum(demo.counts(d, s)["documents"] for d in demo.domains for s in SPLITS) == 7_859
    assert all(demo.counts(d, s)["documents"] for d in demo.domains for s in SPLITS)
    assert all(demo.manifest["domains"][d]["invalid"] == 0 for d in demo.domains)


def test_no_demo_document_is_twice_or_in_two_splits(demo):
    texts = [text for _, _, text in all_documents(demo)]
    assert len(texts) == len(set(texts)) == 7_859


def test_the_manifest_counts_what_the_files_hold(demo):
    demo.verify()
    for domain in demo.domains:
        texts = list(demo.documents(domain, "validation"))
        counts = demo.counts(domain, "validation")
        assert (counts["documents"], counts["bytes"]) == (len(texts), sum(len(t.encode()) for t in texts))


@settings(max_examples=30, deadline=None)
@given(st.lists(words, min_size=1, max_size=30), st.lists(words, min_size=1, max_size=30))
def test_each_document_is_kept_once_whatever_the_order_of_the_sources(tmp_path_factory, first, second):
    tmp_path = tmp_path_factory.mktemp("order")
    a, b = write(tmp_path / "a.jsonl", first), write(tmp_path / "b.jsonl", second)
    options = CorpusOptions(0.2, 0.2)
    sources = {"a": [a], "b": [b, b]} if set(second) - set(first) else {"a": [a, b]}
    corpus = build_corpus(sources, tmp_path / "x", options)
    kept = [text for _, _, text in all_documents(corpus)]
    assert sorted(kept) == sorted({*first, *second})
    joined = build_corpus({"c": [b, a]}, tmp_path / "y", options)
    assert {(s, t) for _, s, t in all_documents(joined)} == {(s, t) for _, s, t in all_documents(corpus)}
    dropped = joined.manifest["domains"]["c"]["duplicates"]
    assert dropped == len(first) + len(second) - len(kept)


def test_the_order_of_domains_given_does_not_matter(tmp_path):
    a, b = write(tmp_path / "a.jsonl", ["one", "two"]), write(tmp_path / "b.jsonl", ["two", "three"])
    x = build_corpus({"a": [a], "b": [b]}, tmp_path / "x")
    y = build_corpus({"b": [b], "a": [a]}, tmp_path / "y")
    assert x.manifest == y.manifest
    assert x.manifest["domains"]["b"]["duplicates"] == 1


@given(st.binary(min_size=32, max_size=32), st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0, 0.4))
def test_changing_one_fraction_moves_no_document_of_the_other(digest, validation, test, other):
    assert (split_of(digest, validation, test) == "test") == (split_of(digest, other, test) == "test")
    assert (split_of(digest, validation, test) == "validation") == (split_of(digest, validation, other) == "validation")


def test_fractions_are_met_on_average():
    splits = [split_of(hashlib.sha256(str(i).encode()).digest(), 0.1, 0.2) for i in range(20_000)]
    assert splits.count("validation") == pytest.approx(2000, rel=0.1)
    assert splits.count("test") == pytest.approx(4000, rel=0.1)


def test_cleaning_keeps_indentation_and_inner_lines():
    assert clean("\r\n\n  a\r\n\r\n\tb \t\n\n") == "  a\n\n\tb"


def test_documents_that_differ_only_in_line_ends_are_duplicates(tmp_path):
    source = write(tmp_path / "a.jsonl", ["a\r\nb", "a\nb\n", "", " \n", "tiny", "long enough"])
    corpus = build_corpus({"a": [source]}, tmp_path / "out", CorpusOptions(0, 0, min_bytes=3))
    domain = corpus.manifest["domains"]["a"]
    assert (domain["duplicates"], domain["too_short"], domain["invalid"]) == (1, 2, 0)
    assert list(corpus.documents("a", "train")) == ["a\nb", "tiny", "long enough"]


def test_invalid_documents_are_dropped_and_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\n\nbad \xff\n\nalso good")
    corpus = build_corpus({"a": [tmp_path / "a.txt"]}, tmp_path / "out", CorpusOptions(0, 0))
    assert corpus.manifest["domains"]["a"]["invalid"] == 1
    assert list(corpus.documents("a", "train")) == ["good", "also good"]


def test_each_file_of_a_folder_is_a_domain_of_its_own(tmp_path):
    for name in ["en.txt", "zh.txt", "en.jsonl", "SOURCES.md", "stats.json"]:
        (tmp_path / name).write_text("{}")
    with pytest.warns(LeftOut, match="stats.json"):
        sources = folder_sources(tmp_path)
    assert {name: [f.name for f in files] for name, files in sources.items()} == {
        "en": ["en.jsonl", "en.txt"], "zh": ["zh.txt"]}


@pytest.mark.parametrize(("sources", "message"), [
    ({}, "no sources"), ({"a/b": ["a.txt"]}, "domain name 'a/b'"), ({"a": ["nowhere"]}, "no file or folder"),
    ({"a": ["a.txt"], "b": ["a.txt"]}, "domain b has no document left"), ({"a": ["a.txt", "empty.txt"]}, "is empty")])
def test_a_build_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, sources, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match=message):
        build_corpus(sources, tmp_path / "out")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.txt", "empty.txt"]


@pytest.mark.parametrize("options", [{"validation": -0.1}, {"validation": 0.5, "test": 0.5}, {"test": float("nan")},
                                     {"min_bytes": 0}])
def test_nonsense_options_are_refused(options):
    with pytest.raises(InputError, match="--"):
        CorpusOptions(**options)


def test_an_earlier_corpus_is_replaced_only_on_request_and_other_folders_never(tmp_path):
    a, b = write(tmp_path / "a.jsonl", ["one"]), write(tmp_path / "b.jsonl", ["two"])
    options = CorpusOptions(0, 0)
    build_corpus({"d": [a]}, tmp_path / "out", options)
    with pytest.raises(InputError, match="--replace"):
        build_corpus({"d": [b]}, tmp_path / "out", options)
    with pytest.raises(InputError, match="no file or folder"):
        build_corpus({"d": ["nowhere"]}, tmp_path / "out", options, replace=True)
    assert list(Corpus(tmp_path / "out").documents("d", "train")) == ["one"]
    build_corpus({"d": [b]}, tmp_path / "out", options, replace=True)
    assert list(Corpus(tmp_path / "out").documents("d", "train")) == ["two"]
    with pytest.raises(InputError, match="holds something else"):
        build_corpus({"d": [b]}, tmp_path, options, replace=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "out"]


def test_a_killed_build_leaves_the_old_corpus_and_the_next_one_clears_up(tmp_path):
    a, out = write(tmp_path / "a.jsonl", ["one"]), tmp_path / "out"
    build_corpus({"d": [a]}, out, CorpusOptions(0, 0))
    process = subprocess.Popen([sys.executable, "-c", (
        "from symboliclight.data import corpus\n"
        "corpus.find_files = lambda path, read: [path]\n"
        "corpus.read_documents = lambda *a: (str(i) for i in iter(int, 1))\n"  # never ends
        f"corpus.build_corpus({{'d': ['x']}}, {str(out)!r}, replace=True)")])
    partial = tmp_path / ".out.partial" / "train" / "d.jsonl"
    while not partial.exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(Corpus(out).documents("d", "train")) == ["one"]
    assert partial.exists()
    build_corpus({"d": [a]}, out, CorpusOptions(0, 0), replace=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.jsonl", "out"]


def test_a_corpus_that_another_process_builds_is_left_to_it(tmp_path):
    a, out = write(tmp_path / "a.jsonl", ["one"]), tmp_path / "out"
    (tmp_path / ".out.partial").mkdir()
    with lock.held(tmp_path / ".out.lock", out), pytest.raises(lock.InUse, match="out is in use by process"):
        build_corpus({"d": [a]}, out)
    assert (tmp_path / ".out.partial").exists()


def test_a_corpus_moved_aside_by_a_killed_replacement_comes_back(tmp_path):
    a = write(tmp_path / "a.jsonl", ["one"])
    build_corpus({"d": [a]}, tmp_path / "out", CorpusOptions(0, 0))
    (tmp_path / "out").rename(tmp_path / ".out.old")  # as if killed between the two renames
    with pytest.raises(InputError, match="--replace"):
        build_corpus({"d": [a]}, tmp_path / "out")
    assert list(Corpus(tmp_path / "out").documents("d", "train")) == ["one"]


def test_damage_is_noticed(tmp_path):
    a = write(tmp_path / "a.jsonl", ["one", "two"])
    corpus = build_corpus({"d": [a]}, tmp_path / "out", CorpusOptions(0, 0))
    file = tmp_path / "out" / "train" / "d.jsonl"
    good = file.read_bytes()
    for content, message in [(good[:-5], "line 2 is damaged"), (good.splitlines(True)[0], "holds 1 documents"),
                             (None, "cannot read")]:
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            list(corpus.documents("d", "train"))
        with pytest.raises(InputError, match="missing or changed"):
            corpus.verify()


@pytest.mark.parametrize(("content", "message"), [
    ("{", "damaged or foreign"), ("[]", "damaged or foreign"), ('{"format": 99}', "format 99"),
    (json.dumps({"format": FORMAT, "kind": "shards"}), "does not describe a corpus")])
def test_a_foreign_manifest_is_refused(tmp_path, content, message):
    (tmp_path / "corpus.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Corpus(tmp_path)
