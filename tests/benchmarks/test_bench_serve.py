"""`bench serve` measures a real server, and nothing that is wrong."""

import contextlib
import itertools
import json
import time

import numpy as np
import pytest

from symboliclight import engine
from symboliclight.benchmarks import serve as bench
from symboliclight.benchmarks import serve_load
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


def test_every_row_is_measured(client, exported, small_tokenizer, monkeypatch):
    rows, rate = bench._together(client, "small", 4)
    rows += bench._beside_the_runtime(client, engine.load(exported, threads=1), small_tokenizer, "small", 4)
    rows += bench._first_token(client, "small", 300, small_tokenizer.vocab_size)
    rows += bench._behind(client, "small", 60_000, small_tokenizer.vocab_size) + bench._kept(client, "small")
    assert len(rows) == 7 and rate > 0
    monkeypatch.setattr(serve_load, "ARRIVALS", 6)
    rows += serve_load.costs(client, "small", 4) + serve_load.open_loop(client, "small", 4, rate)
    assert len(rows) == 7 + 2 + 3 * 4 and all(r["value"] > 0 and r["against"] > 0 and r["ratio"] > 0 for r in rows)


def test_the_quick_form_runs(tmp_path, monkeypatch):
    """With the tokenizer of the package, which may have more ids than the model, or fewer."""
    monkeypatch.setattr(serve_load, "ARRIVALS", 6)
    found = json.loads(bench.run(tmp_path, quick=True).read_text(encoding="utf-8"))
    assert found["quick"] and len(found["rows"]) == 7 + 2 + 3 * 4


def test_clients_come_at_random_times_at_the_rate_asked_for():
    """Whatever the server does: arrivals do not wait for answers."""
    came = []

    class Slow:
        def send(self, **body):
            came.append(time.perf_counter())
            time.sleep(0.05)
            return contextlib.nullcontext([])

    serve_load._arrive(Slow(), 4, 2000, np.random.default_rng(0))
    gaps = np.diff(sorted(came))
    assert len(came) == serve_load.ARRIVALS and came[-1] - came[0] < 0.05 * serve_load.ARRIVALS / 4 and gaps.std() > 0


def test_texts_that_differ_are_not_measured(client, exported, small_tokenizer, monkeypatch):
    other = itertools.count()
    monkeypatch.setattr(bench.Client, "text", lambda self, **body: str(next(other)))
    with pytest.raises(InputError, match="written at once are not those written alone"):
        bench._together(client, "small", 4)
    with pytest.raises(InputError, match="another text than the runtime"):
        bench._beside_the_runtime(client, engine.load(exported, threads=1), small_tokenizer, "small", 4)
