"""Token shards: what they hold, that they open, and that damage is noticed."""

import json

import numpy as np
import pytest

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.data.corpus import SPLITS, CorpusOptions, build_corpus
from symboliclight.data.shards import Shards, build_shards

DOCUMENTS = {"zh": [f"第{i}首\n春眠不覺曉，處處聞啼鳥。" for i in range(40)],
             "en": [f"Line {i}.\n\tend  " for i in range(60)]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for name, documents in DOCUMENTS.items():
        (folder / f"{name}.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return build_corpus({name: [folder / f"{name}.txt"] for name in DOCUMENTS}, folder / "out", CorpusOptions(0.2, 0.2))


@pytest.fixture
def shards(corpus, small_tokenizer, tmp_path):
    return build_shards(corpus, small_tokenizer, tmp_path / "shards")


def test_shards_hold_the_documents_between_bos_and_eos(corpus, small_tokenizer, shards):
    for split in SPLITS:
        for domain in corpus.domains:
            ids = shards.tokens(split, domain)
            assert ids.dtype == np.uint16
            starts = np.flatnonzero(ids == small_tokenizer.bos_id)
            ends = np.flatnonzero(ids == small_tokenizer.eos_id)
            texts = [small_tokenizer.decode(ids[a:b]) for a, b in zip(starts, ends + 1, strict=True)]
            assert texts == list(corpus.documents(domain, split))


def test_the_manifest_counts_tokens_documents_and_text_bytes(corpus, small_tokenizer, shards):
    for split in SPLITS:
        for domain, counts in shards.splits[split].items():
            ids = shards.tokens(split, domain)
            assert counts["tokens"] == len(ids)
            assert counts["bytes"] == small_tokenizer.piece_bytes[ids].sum() == corpus.counts(domain, split)["bytes"]
            assert counts["documents"] == corpus.counts(domain, split)["documents"]
    assert (shards.tokenizer_hash, shards.data_hash) == (small_tokenizer.hash, corpus.data_hash)
    assert shards.vocab_size == small_tokenizer.vocab_size
    assert shards.tokenizer().hash == small_tokenizer.hash


def test_the_result_does_not_depend_on_the_number_of_threads(corpus, small_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("symboliclight.data.shards._BATCH", 50)  # many batches in work at once
    seen = []
    one = build_shards(corpus, small_tokenizer, tmp_path / "one", threads=1, on_bytes=seen.append)
    three = build_shards(corpus, small_tokenizer, tmp_path / "three", threads=3)
    assert one.manifest == three.manifest
    Shards.open(tmp_path / "three", verify=True)
    assert sum(seen) == sum(counts["bytes"] for domains in one.splits.values() for counts in domains.values())


class BigTokenizer(Tokenizer):
    """Ids that do not fit into 16 bits."""

    def encode(self, text, bos=False, eos=False, special=True):
        return [i + (1 << 16) for i in super().encode(text, bos, eos, special)]


def test_a_large_vocabulary_takes_32_bits(corpus, small_tokenizer, tmp_path):
    tokenizer = BigTokenizer(small_tokenizer._model)
    tokenizer.vocab_size = 70_000
    ids = build_shards(corpus, tokenizer, tmp_path / "big").tokens("train", "en")
    assert ids.dtype == np.uint32
    assert ids[0] == small_tokenizer.bos_id + (1 << 16)


def test_an_empty_split_has_no_domains_and_its_tokens_are_refused(small_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("only one document")
    corpus = build_corpus({"a": [tmp_path / "a.txt"]}, tmp_path / "corpus", CorpusOptions(0, 0))
    shards = build_shards(corpus, small_tokenizer, tmp_path / "shards")
    assert shards.domains("train") == ["a"]
    assert shards.domains("test") == []
    with pytest.raises(InputError, match="no test tokens of domain 'a'"):
        shards.tokens("test", "a")
    with pytest.raises(InputError, match="no split 'dev'"):
        shards.domains("dev")


def test_a_changed_token_is_found_by_verify_and_a_changed_size_at_once(shards):
    file = shards.path / "train" / "zh.bin"
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)
    Shards.open(shards.path)
    with pytest.raises(InputError, match=r"zh\.bin does not match its hash"):
        Shards.open(shards.path, verify=True)
    file.write_bytes(data[:-2])
    with pytest.raises(InputError, match=rf"zh\.bin holds {len(data) - 2} bytes instead of {len(data)}"):
        Shards.open(shards.path)
    file.unlink()
    with pytest.raises(InputError, match=r"zh\.bin is missing"):
        Shards.open(shards.path)


def test_a_foreign_tokenizer_or_manifest_is_refused(shards):
    file = shards.path / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"tokenizer_hash": "0" * 64}))
    with pytest.raises(InputError, match="not the tokenizer of the manifest"):
        Shards.open(shards.path)
    for broken in ({"format": 1}, manifest | {"dtype": "spam"}, manifest | {"splits": {"train": {"zh": {}}}}):
        file.write_text(json.dumps(broken))
        with pytest.raises(InputError, match="does not describe shards"):
            Shards.open(shards.path)
    with pytest.raises(InputError, match="symboliclight corpus shards"):
        Shards.open(shards.path / "train")


def test_a_full_disk_is_one_clear_line_and_the_old_shards_survive(corpus, small_tokenizer, shards, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("symboliclight.data.shards._write", full_disk)
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device; nothing was changed"):
        build_shards(corpus, small_tokenizer, shards.path, replace=True)
    assert Shards.open(shards.path, verify=True).manifest == shards.manifest
    assert [f.name for f in shards.path.parent.iterdir()] == ["shards"]


def test_threads_must_be_positive(corpus, small_tokenizer, tmp_path):
    with pytest.raises(InputError, match="--threads"):
        build_shards(corpus, small_tokenizer, tmp_path / "x", threads=0)
