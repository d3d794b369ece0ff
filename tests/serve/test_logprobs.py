"""Log-probabilities of tokens, written and read: those of the model before anything is done to them."""

import threading

import numpy as np
import pytest
from live import Server

from symboliclight import engine
from symboliclight.core.errors import InputError
from symboliclight.generate.logprobs import Score, scores
from symboliclight.generate.sampling import Row, Sampling, generate
from symboliclight.measure.likelihood import encode_pair, loglikelihoods
from symboliclight.serve.answers import spelt
from symboliclight.serve.memory import Memory
from symboliclight.serve.texts import Text
from symboliclight.serve.writer import Writer

HOW = {"temperature": 1.2, "top_k": 40, "repetition_penalty": 1.3, "top_p": 0.95}
PROMPT = "春天的风 the old city 🌊"
LONG = PROMPT * 70  # more than two pieces of a prompt


@pytest.fixture(scope="module")
def server(small_checkpoint):
    server = Server("--model", str(small_checkpoint), "--precision", "int8", "--slots", "4", "--max-tokens", "20")
    yield server
    code, out, err = server.stop()
    assert (code, out, err) == (0, "stopped\n", "")


@pytest.fixture(scope="module")
def model(small_checkpoint):
    return engine.load(small_checkpoint, "int8", threads=1)


def log_softmax(model, ids):
    """(T, V) after each of the ids, plainly."""
    logits = model(np.array([ids], np.int64))[0][0].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_scores_are_the_slow_log_softmax():
    logits = np.random.default_rng(0).normal(size=(5, 300)).astype(np.float32) * 8
    slow = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    for top in (0, 1, 7, 300, 400):
        for i, score in enumerate(scores(logits, [3, 5, 0, 299, 8], top)):
            assert score.token == [3, 5, 0, 299, 8][i] and abs(score.logprob - slow[i, score.token]) < 1e-5
            assert [t for t, _ in score.top] == list(np.argsort(-slow[i], kind="stable")[:top])
            np.testing.assert_allclose([p for _, p in score.top], np.sort(slow[i])[::-1][:top], atol=1e-5)
    logits[2, 7] = np.nan
    with pytest.raises(InputError, match="not finite"):
        scores(logits, [0] * 5, 1)


def test_written_tokens_have_the_models_log_probabilities_whatever_is_done_to_choose_them(
        server, model, small_tokenizer):
    body = {"prompt": PROMPT, "seed": 7, "n": 2, "logprobs": 3, **HOW}
    answer = server.ask("/v1/completions", body)[1]
    ids = small_tokenizer.encode(PROMPT, bos=True)
    for choice, text in zip(answer["choices"], generate(model, small_tokenizer, [ids] * 2, 20, Sampling(**HOW), seed=7),
                            strict=True):
        assert choice["text"] == text.text
        wanted, found = log_softmax(model, ids + text.ids), choice["logprobs"]
        assert len(found["tokens"]) == len(text.ids) == 20
        for i, token in enumerate(text.ids):
            row = wanted[len(ids) + i - 1]
            assert found["token_logprobs"][i] == pytest.approx(row[token], abs=1e-5)
            assert found["tokens"][i] == spelt(small_tokenizer, token)[0]
            told = {spelt(small_tokenizer, int(t))[0]: row[t] for t in np.argsort(-row)[:3]}
            told.setdefault(found["tokens"][i], row[token])
            assert found["top_logprobs"][i] == pytest.approx(told, abs=1e-5)


def test_log_probabilities_change_no_text(server):
    body = {"prompt": PROMPT, "seed": 1, "n": 2, **HOW, "repetition_penalty": 1}
    plain = [c["text"] for c in server.ask("/v1/completions", body)[1]["choices"]]
    assert [c["text"] for c in server.ask("/v1/completions", body | {"logprobs": 0})[1]["choices"]] == plain


def test_the_bytes_of_a_chats_tokens_join_to_its_text(server):
    body = {"messages": [{"role": "user", "content": PROMPT}], "seed": 5, "n": 2, "max_tokens": 60, "ignore_eos": True,
            "temperature": 1.5, "logprobs": True, "top_logprobs": 4}
    for choice in server.ask("/v1/chat/completions", body)[1]["choices"]:
        content = choice["logprobs"]["content"]
        assert len(content) == 60 and any(c["token"].startswith("bytes:") for c in content)
        data = b"".join(bytes(c["bytes"]) for c in content)
        assert data.decode("utf-8", "replace").startswith(choice["message"]["content"])
        for told in content:
            likeliest = [t["logprob"] for t in told["top_logprobs"]]
            assert len(likeliest) == 4 and likeliest == sorted(likeliest, reverse=True)
            assert all(bytes(t["bytes"]).decode() == t["token"] for t in told["top_logprobs"]
                       if t["bytes"] and not t["token"].startswith("bytes:"))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_streams_log_probabilities_join_to_those_of_the_whole(server, path):
    chat = "chat" in path
    body = {"seed": 3, "n": 3, "max_tokens": 40, "temperature": 1.5, "ignore_eos": True}
    body["stop"] = ["zzzz", "e the", "qu"]
    body |= ({"messages": [{"role": "user", "content": PROMPT}], "logprobs": True, "top_logprobs": 2} if chat else
             {"prompt": PROMPT, "logprobs": 2, "echo": True})
    whole = server.ask(path, body)[1]["choices"]
    chunks = [c["choices"][0] for c in server.stream(path, body)]
    for choice in whole:
        mine = [c for c in chunks if c["index"] == choice["index"]]
        told = [c["logprobs"] for c in mine if c["logprobs"]]
        assert len(told) > 5
        joined = {k: [one for t in told for one in t[k]] for k in told[0] if k != "refusal"}
        assert joined == {k: v for k, v in choice["logprobs"].items() if k != "refusal"}
        if not chat:  # a token is not told before its first character
            assert "".join(c["text"] for c in mine) == choice["text"]
            shown = 0
            for c in mine[:-1]:
                shown += len(c["text"])
                assert all(at < shown for at in (c["logprobs"] or {"text_offset": []})["text_offset"])


@pytest.mark.parametrize("asked", ["text", "ids"])
def test_an_echoed_prompt_is_scored_from_its_second_token_on(server, model, small_tokenizer, asked):
    ids = small_tokenizer.encode(LONG, bos=True)
    assert len(ids) > 600
    body = {"prompt": LONG if asked == "text" else ids, "echo": True, "logprobs": 2, "max_tokens": 0, "n": 2}
    answer = server.ask("/v1/completions", body)[1]
    assert answer["usage"]["completion_tokens"] == 0 and answer["usage"]["prompt_tokens"] == len(ids)
    wanted = log_softmax(model, ids)
    for choice in answer["choices"]:
        found = choice["logprobs"]
        assert choice["text"] == LONG and choice["finish_reason"] == "length"
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        np.testing.assert_allclose(found["token_logprobs"][1:], wanted[np.arange(len(ids) - 1), ids[1:]], atol=1e-5)
        best = [max(told.values()) for told in found["top_logprobs"][1:]]
        np.testing.assert_allclose(best, wanted[:-1].max(-1), atol=1e-5)
        for token, at in zip(found["tokens"], found["text_offset"], strict=True):
            assert token == "<s>" or token.startswith("bytes:") or LONG[at:].startswith(token)


def test_an_echo_goes_before_the_text_of_every_choice_and_is_not_scored_unasked(server):
    body = {"prompt": ["the", PROMPT], "seed": 2, "n": 2}
    plain = [c["text"] for c in server.ask("/v1/completions", body)[1]["choices"]]
    for more in ({}, {"logprobs": 1}):
        echoed = server.ask("/v1/completions", body | {"echo": True} | more)[1]["choices"]
        assert [c["text"] for c in echoed] == ["the" + plain[0], "the" + plain[1], PROMPT + plain[2], PROMPT + plain[3]]
        assert all((c["logprobs"] is None) == (not more) for c in echoed)
    streamed = [c["choices"][0] for c in server.stream("/v1/completions", body | {"echo": True})]
    for i in range(4):
        assert "".join(c["text"] for c in streamed if c["index"] == i) == echoed[i]["text"]


def test_a_prompt_that_is_remembered_is_scored_all_the_same(server):
    body = {"prompt": LONG, "seed": 2, "logprobs": 1, "echo": True, "max_tokens": 3}
    server.ask("/v1/completions", {"prompt": LONG, "max_tokens": 1})
    first, second = (server.ask("/v1/completions", body)[1] for _ in range(2))
    assert first["choices"] == second["choices"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_nothing_is_written_for_no_tokens_unless_the_prompt_is_echoed(server):
    status, answer = server.ask("/v1/completions", {"prompt": "a", "max_tokens": 0})
    assert status == 400 and "0 with echo" in answer["error"]["message"]
    chunks = server.stream("/v1/completions", {"prompt": "a", "max_tokens": 0, "echo": True, "logprobs": 0})
    assert [(c["choices"][0]["text"], c["choices"][0]["finish_reason"]) for c in chunks] == [("a", "length")]
    assert len(chunks[0]["choices"][0]["logprobs"]["tokens"]) == 2


@pytest.mark.parametrize("tokenized", [True, False])
def test_the_requests_of_the_harness_give_its_log_likelihoods(server, model, small_tokenizer, tokenized):
    asked = [("the old city", " of the river"), ("孩子们在河边唱歌，", "老人坐在树下"),
             ("the light " * 40, "fell on the water")]
    pairs = [encode_pair(small_tokenizer, *pair) for pair in asked]
    for (before, after), (total, greedy) in zip(pairs, loglikelihoods(model, pairs), strict=True):
        prompt = before + after if tokenized else small_tokenizer.decode(before + after)
        assert small_tokenizer.encode(small_tokenizer.decode(before + after), bos=True) == before + after
        body = {"model": "m", "prompt": prompt, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234,
                "echo": True}
        found = server.ask("/v1/completions", body)[1]["choices"][0]["logprobs"]
        assert len(found["tokens"]) == len(before + after) + 1
        own, best = found["token_logprobs"][len(before) : -1], found["top_logprobs"][len(before) : -1]
        assert sum(own) == pytest.approx(total, abs=1e-4)
        assert all(p == max(t.values()) for p, t in zip(own, best, strict=True)) == greedy


@pytest.mark.needs("torch")
def test_the_torch_models_prompts_are_scored_alike(small_model, small_tokenizer):
    ids, ended = small_tokenizer.encode(LONG, bos=True), threading.Event()
    text = Text(ids, [Row(small_tokenizer, ids, 1, Sampling())], lambda event: ended.set(), scored=2, only_read=True)
    with Writer(small_model, 2, Memory(0)) as writer:
        writer.submit([text])
        assert ended.wait(60)
    total = sum(score.logprob for score in text.scores[1:])
    assert total == pytest.approx(loglikelihoods(small_model, [(ids[:1], ids[1:])])[0][0], abs=1e-3)
    assert text.scores[0] == Score(1, None)


def test_a_prompt_whose_logits_are_not_finite_ends_alone(model, small_tokenizer):
    class Broken:
        config = model.config

        def initial_state(self, *arguments):
            return model.initial_state(*arguments)

        def __call__(self, tokens, state):
            logits, state = model(tokens, state)
            return logits * np.nan, state

        def last(self, *arguments):
            return model.last(*arguments)

    events, ended = [], threading.Event()
    with Writer(Broken(), 2, Memory(0)) as writer:
        for scored in (1, None):
            ended.clear()
            text = Text([1, 300, 301], [Row(small_tokenizer, [1, 300, 301], 2, Sampling(), stop_ids=())],
                        lambda e: (events.append(e), (e.error or e.finish) and ended.set()), scored=scored)
            writer.submit([text])
            assert ended.wait(60)
    assert isinstance(events[0].error, InputError) and events[-1].finish == "length"
