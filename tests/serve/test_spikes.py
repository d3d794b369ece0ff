"""What a stream tells of spikes: as the runtime traces them, summed as it counts them, and only to who asks."""

import base64
import json
import queue

import numpy as np
import pytest
from test_serve_command import Server

from symboliclight import engine
from symboliclight.core.errors import InputError
from symboliclight.generate.sampling import Row, Sampling
from symboliclight.serve.memory import Memory
from symboliclight.serve.requests import Defaults, parse
from symboliclight.serve.spikes import Meter, chosen, sites
from symboliclight.serve.texts import Text
from symboliclight.serve.writer import Writer

HOW = {"temperature": 0.9, "top_k": 30}
DEFAULTS = Defaults(Sampling(), 20, (), False)


@pytest.fixture(scope="module", params=["int8", "certified"])
def model(request, small_checkpoint):
    return engine.load(small_checkpoint, request.param, threads=1)


def write(model, tokenizer, prompts, asking, top_k=30):
    """For each prompt, its ids and the events told of it; those in `asking` ask for spikes."""
    texts, told = [], queue.SimpleQueue()
    for i, prompt in enumerate(prompts):
        ids = tokenizer.encode(prompt, bos=True)
        rows = [Row(tokenizer, ids, 12, Sampling(top_k=top_k), stop_ids=(), seed=i)]
        texts.append(Text(ids, rows, lambda event, i=i: told.put((i, event)), spikes=i in asking))
    with Writer(model, 4, Memory(0)) as writer:
        writer.submit(texts)
        found, left = [[] for _ in prompts], len(prompts)
        while left:
            i, event = told.get(timeout=60)
            assert event.error is None
            found[i].append(event)
            left -= bool(event.finish)
    return [(t.prompt, t.rows[0].done.ids) for t in texts], found


def test_sites_are_those_of_a_trace(model, small_config):
    _, spikes, _ = model.trace(np.array([[1, 5]]))
    assert list(sites(small_config)) == [(name, s.shape[-1]) for name, s in spikes.items()]


def test_a_trace_of_the_last_token_gives_the_logits_of_a_step(model):
    tokens = np.array([[3], [7]])
    logits, spikes, _ = model.trace(tokens, model.initial_state(2), 5)
    expected, _ = model.last(tokens, model.initial_state(2), 5)
    np.testing.assert_array_equal(logits, expected)
    whole, same, _ = model.trace(tokens, model.initial_state(2))
    assert whole.shape == (2, 1, model.config.vocab_size)
    assert all((spikes[name] == same[name]).all() for name in same)


def test_each_token_comes_with_who_spiked_for_it(model, small_tokenizer):
    texts, events = write(model, small_tokenizer, ["the old city", "春天的风", "a"], {0, 1})
    for (prompt, ids), found in list(zip(texts, events, strict=True))[:2]:
        _, spikes, _ = model.trace(np.array([prompt + ids[:-1]]))
        told = [e.spikes for e in found if e.spikes]
        assert [(one["token"], one["id"]) for one in told] == list(enumerate(ids))
        for t, one in enumerate(told):
            column = {name: s[0, len(prompt) - 1 + t] for name, s in spikes.items()}
            np.testing.assert_allclose(one["silent"], [1 - c.mean() for c in column.values()], atol=5e-5)
            drawn = [c[chosen(len(c))] for name, c in column.items() if name.split(".")[0] in ("encoder", "blocks")]
            bits = np.unpackbits(np.frombuffer(base64.b64decode(one["fired"]), np.uint8))
            assert (bits[: sum(map(len, drawn))] == np.concatenate(drawn)).all()
    assert all(e.spikes is None for e in events[2])


def test_texts_are_the_same_whoever_asks(model, small_tokenizer):
    prompts = ["the old city", "春天的风", "a"]
    assert write(model, small_tokenizer, prompts, {0})[0] == write(model, small_tokenizer, prompts, ())[0]


def test_bytes_are_those_that_the_runtime_counts(model, small_tokenizer):
    """Of one text exactly, and of several together."""
    for prompts in (["the old city"], ["the old city", "a", "春天的风"]):
        ids = [small_tokenizer.encode(p, bos=True)[:2] for p in prompts]
        state = model.last(np.array(ids), None)[1]

        class Slots:
            def trace(self, model, tokens, top, state=state):
                return model.trace(tokens, state, top)[:2]

        def totals():
            stats = model.stats()
            return np.array([sum(stats["bytes"].values()), sum(stats["whole"].values())]) * stats["tokens"]

        rows, before = range(len(prompts)), totals()
        _, told = Meter(model).advance(Slots(), np.array([[i[-1]] for i in ids]), 0, rows)
        read, whole = totals() - before
        assert sum(told[i]["bytes"] for i in rows) == pytest.approx(read, abs=len(prompts))
        assert sum(told[i]["twin_bytes"] for i in rows) == pytest.approx(whole, abs=len(prompts))


def test_operations_are_products_of_active_inputs(model, small_tokenizer, small_config):
    """Of the first token, which sees itself alone: by hand, from the shapes of the checkpoint."""
    c, prompt = small_config, [small_tokenizer.bos_id]
    seen = []
    row = Row(small_tokenizer, prompt, 1, Sampling(), stop_ids=(), seed=0)
    with Writer(model, 1, Memory(0)) as writer:
        ended = queue.SimpleQueue()
        writer.submit([Text(prompt, [row], lambda e: (seen.append(e), ended.put(e)), spikes=True)])
        ended.get(timeout=60)
    told = seen[0].spikes
    _, spikes, _ = model.trace(np.array([prompt]))
    n = {name: int(s.sum()) for name, s in spikes.items()}
    D, F, V, L = c.d_model, c.d_ff, c.vocab_size, c.n_layers
    steady = L * (4 * D * D + F * D) + V * D + D // 4 * D + V * (D // 4)
    spiking = [n["encoder" if i == 0 else f"blocks.{i - 1}"] * D + n[f"ffn.{i}"] * D for i in range(L)]
    assert told["operations"] == steady + sum(spiking) + L * 2 * D  # it sees its own key and value
    assert told["twin_operations"] - told["operations"] == L * (D * D + F * D) - sum(spiking)


@pytest.fixture(scope="module")
def server(small_checkpoint):
    server = Server("--model", str(small_checkpoint), "--precision", "int8", "--max-tokens", "20", "--memory", "0")
    yield server
    assert server.stop() == (0, "stopped\n", "")


def streamed(server, path, body):
    link = server.connect()
    link.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
    return link.getresponse().read().decode()


def blocks(server, path, body):
    """Events of a stream, with the id and the time of the answer taken out."""
    found = streamed(server, path, {**body, **HOW, "seed": 4}).split("\n\n")
    assert found.pop() == ""
    first = json.loads(next(b for b in found if b.startswith("data: {")).removeprefix("data: "))
    return [b.replace(first["id"], "ID").replace(f'"created": {first["created"]}', "CREATED") for b in found]


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/completions", {"prompt": "the old", "stream_options": {"include_usage": True}}),
    ("/v1/completions", {"prompt": ["春天", "the"], "n": 2}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "春天的风"}]}),
])
def test_spikes_come_beside_a_stream_that_is_otherwise_the_same(server, path, body):
    plain, beside = blocks(server, path, body), blocks(server, path, {**body, "spikes": True})
    assert blocks(server, path, {**body, "spikes": False}) == plain
    assert not any(b.startswith("event:") for b in plain)
    assert sorted(b for b in beside if not b.startswith("event: spikes\ndata: ")) == sorted(plain)  # rows interleave
    layout, *told = [json.loads(b.partition("data: ")[2]) for b in beside if b.startswith("event: spikes\n")]
    assert [s["name"] for s in layout["sites"]] == ["encoder", "ffn.0", "blocks.0", "ffn.1", "blocks.1"]
    assert [s["shown"] for s in layout["sites"]] == [32, 0, 32, 0, 32]
    for one in told:
        assert len(one["silent"]) == len(layout["sites"]) and len(base64.b64decode(one["fired"])) == 3 * 32 // 8
        assert 0 < one["bytes"] < one["twin_bytes"] and 0 < one["operations"] < one["twin_operations"]


def test_spikes_come_before_the_text_of_their_token(server):
    beside = blocks(server, "/v1/completions", {"prompt": "the old", "spikes": True, "ignore_eos": True})
    kinds = ["spikes" if b.startswith("event: spikes") else "text" for b in beside[1:-1]]  # without layout and [DONE]
    tokens = [json.loads(b.partition("data: ")[2])["token"] for b in beside[1:] if b.startswith("event: ")]
    assert tokens == list(range(20)) and kinds[0] == "spikes" and kinds[-1] == "text"
    assert "text text" not in " ".join(kinds)  # each piece of text has a token of its own


def test_a_stream_that_does_not_ask_is_what_it_always_was(server):
    """Its bytes, put together here."""
    body = {"prompt": "the old", "seed": 4, **HOW}
    whole = server.ask("/v1/completions", body)[1]
    answer = streamed(server, "/v1/completions", body)
    chunks = [json.loads(line.removeprefix("data: ")) for line in answer.split("\n\n")[:-2]]
    head = {key: chunks[0][key] for key in ("id", "object", "created", "model")}
    said = [c["choices"][0] for c in chunks]
    expected = [head | {"choices": [{"index": 0, "text": one["text"], "logprobs": None,
                                     "finish_reason": one["finish_reason"]}]} for one in said]
    lines = [json.dumps(one, ensure_ascii=False) for one in expected] + ["[DONE]"]
    assert answer == "".join(f"data: {line}\n\n" for line in lines)
    assert "".join(one["text"] for one in said) == whole["choices"][0]["text"]


def test_nobody_is_traced_who_does_not_ask(model, small_tokenizer, monkeypatch):
    def never(*_):
        raise AssertionError("a trace that nobody asked for")

    monkeypatch.setattr(Meter, "advance", never)
    write(model, small_tokenizer, ["the old city", "a"], ())


@pytest.mark.parametrize(("body", "message"), [
    ({"prompt": "a", "spikes": True}, "set stream to true"), ({"prompt": "a", "spikes": 1}, "spikes must be true"),
])
def test_spikes_that_cannot_come_are_refused(small_tokenizer, body, message):
    with pytest.raises(InputError, match=message):
        parse(body, False, small_tokenizer, DEFAULTS)


@pytest.mark.needs("torch")
def test_a_model_that_does_not_tell_its_spikes_says_so(small_model, small_tokenizer):
    row = Row(small_tokenizer, [1], 3, Sampling(), seed=0)
    with Writer(small_model, 1, Memory(0)) as writer:
        assert writer.meter is None
        with pytest.raises(InputError, match="does not tell its spikes"):
            writer.submit([Text([1], [row], lambda event: None, spikes=True)])
