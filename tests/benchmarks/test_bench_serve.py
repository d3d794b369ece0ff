"""`bench serve` measures a real server, and nothing that is wrong."""

import itertools

import pytest

from symboliclight import engine
from symboliclight.benchmarks import serve as bench
from symboliclight.core.errors import InputError


@pytest.fixture(scope="module")
def exported(small_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "small"
    engine.export(small_checkpoint, folder, "int8")
    return folder


@pytest.fixture(scope="module")
def client(exported):
    with bench.server(exported, 1) as client:
        yield client


def test_every_row_is_measured(client, exported, small_tokenizer):
    rows = bench._together(client, "small", 4)
    rows += bench._beside_the_runtime(client, engine.load(exported, threads=1), small_tokenizer, "small", 4)
    rows += bench._first_token(client, "small", 300, small_tokenizer.vocab_size)
    rows += bench._behind(client, "small", 60_000, small_tokenizer.vocab_size) + bench._kept(client, "small")
    assert len(rows) == 7 and all(r["value"] > 0 and r["against"] > 0 and r["ratio"] > 0 for r in rows)


def test_texts_that_differ_are_not_measured(client, exported, small_tokenizer, monkeypatch):
    other = itertools.count()
    monkeypatch.setattr(bench.Client, "text", lambda self, **body: str(next(other)))
    with pytest.raises(InputError, match="written at once are not those written alone"):
        bench._together(client, "small", 4)
    with pytest.raises(InputError, match="another text than the runtime"):
        bench._beside_the_runtime(client, engine.load(exported, threads=1), small_tokenizer, "small", 4)
