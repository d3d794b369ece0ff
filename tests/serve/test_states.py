"""States under a name: whatever begins from one writes what it writes behind the whole text; files of strangers."""

import json
import struct
import time

import numpy as np
import pytest
from live import Server
from safetensors.numpy import load, save

from symboliclight import engine
from symboliclight.core.errors import InputError
from symboliclight.serve.states import Saved, States

HOW = {"seed": 5, "temperature": 0.9, "max_tokens": 16, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(small_checkpoint):
    server = Server("--model", str(small_checkpoint), "--precision", "int8", "--threads", "1", "--state-memory", "1",
                    "--turns")
    yield server
    assert server.running() == 0
    assert server.stop()[0] == 0


@pytest.fixture
def ids(small_tokenizer):
    return small_tokenizer.encode("the old river and the sun " * 60, bos=True)


def text(server, body, path="/v1/completions"):
    status, answer = server.ask(path, {**HOW, **body})
    assert status == 200, answer
    choice = answer["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.mark.parametrize("cut", [1, 2, 255, 256, 257, -1])
def test_text_behind_a_state_is_text_behind_the_whole_prompt(server, ids, cut):
    status, saved = server.ask("/v1/states", {"name": "a", "prompt": ids[:cut]})
    assert status == 200 and saved["tokens"] == len(ids[:cut])
    for _ in range(2):  # a state stays what it is
        assert text(server, {"state": "a", "prompt": ids[cut:]}) == text(server, {"prompt": ids})


def test_text_goes_on_without_a_prompt_and_streams(server, ids):
    server.ask("/v1/states", {"name": "b", "prompt": ids})
    whole = text(server, {"prompt": ids})
    assert text(server, {"state": "b"}) == text(server, {"state": "b", "prompt": ""}) == whole
    streamed = server.stream("/v1/completions", {**HOW, "state": "b"})
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == whole
    many = server.ask("/v1/completions", {**HOW, "state": "b", "n": 3})[1]["choices"]
    assert many[0]["text"] == whole and len({choice["text"] for choice in many}) == 3


def test_a_fork_goes_its_own_way(server, ids):
    server.ask("/v1/states", {"name": "root", "prompt": ids[:40]})
    for name, more in (("one", ids[40:60]), ("two", ids[60:90])):
        saved = server.ask("/v1/states", {"name": name, "state": "root", "prompt": more})[1]
        assert saved["tokens"] == 40 + len(more)
        assert text(server, {"state": name}) == text(server, {"prompt": ids[:40] + more})
    assert text(server, {"state": "root"}) == text(server, {"prompt": ids[:40]})


def test_a_conversation_goes_on_from_its_state(server):
    said = [{"role": "user", "content": "the old"}, {"role": "assistant", "content": "river"}]
    again = {"role": "user", "content": "the sun?"}
    assert server.ask("/v1/states", {"name": "talk", "messages": said})[0] == 200
    behind = text(server, {"state": "talk", "messages": [again]}, "/v1/chat/completions")
    assert behind == text(server, {"messages": [*said, again]}, "/v1/chat/completions")


def test_a_state_is_taken_away_and_brought_back(server, ids):
    server.ask("/v1/states", {"name": "c", "prompt": ids})
    expected = text(server, {"state": "c"})
    answer = server.open("/v1/states/c")
    data = answer.read()
    assert answer.status == 200 and answer.headers["content-type"] == "application/octet-stream"
    gone = json.loads(server.open("/v1/states/c", method="DELETE").read())
    assert gone == {"name": "c", "object": "state", "deleted": True}
    assert server.ask("/v1/completions", {"state": "c"})[0] == 404
    brought = json.loads(server.open("/v1/states/d", raw=data, method="PUT").read())
    assert brought["tokens"] == len(ids) and text(server, {"state": "d"}) == expected
    assert "d" in [one["name"] for one in server.ask("/v1/states")[1]["data"]]


def test_a_client_that_leaves_has_its_prompt_read_no_further(server):
    tokens, before = 200_000, server.ask("/stats")[1]["prompt_tokens"]
    link, deadline = server.connect(), time.monotonic() + 60
    link.request("POST", "/v1/states", json.dumps({"name": "nobodys", "prompt": [300] * tokens}),
                 {"Content-Type": "application/json"})
    while not server.ask("/health")[1]["waiting"] and time.monotonic() < deadline:
        time.sleep(0.01)
    link.close()
    while server.ask("/health")[1]["waiting"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 0 < server.ask("/stats")[1]["prompt_tokens"] - before < tokens - 1  # the last is not read
    assert "nobodys" not in [state["name"] for state in server.ask("/v1/states")[1]["data"]]


def test_hostile_files_are_refused(server, ids):
    server.ask("/v1/states", {"name": "e", "prompt": ids})
    data = server.open("/v1/states/e").read()
    arrays, length = load(data), int.from_bytes(data[:8], "little")
    about = json.loads(data[8 : 8 + length])["__metadata__"]
    bad = {"noise": np.random.default_rng(0).bytes(3000), "empty": b"", "short": data[:-7], "long": data + b"x" * 9,
           "header": struct.pack("<Q", 1 << 40) + data[8:]}
    for key, value in (("weights", "0" * 64), ("last", "-1"), ("last", "99999999"), ("last", "٣"), ("tokens", "7")):
        bad[f"{key} {value}"] = save(arrays, {**about, key: value})
    for name, array in arrays.items():
        if name != "tails":  # files of before there were convolutions have none
            bad[f"no {name}"] = save({key: x for key, x in arrays.items() if key != name}, about)
        bad[f"two {name}"] = save({**arrays, name: np.concatenate([array, array])}, about)
    bad["two"] = save({name: np.concatenate([x, x]) for name, x in arrays.items()}, about)
    bad["nan"] = save({**arrays, "v": np.full_like(arrays["v"], np.nan)}, about)
    bad["position"] = save({**arrays, "position": arrays["position"] + (1 << 50)}, about)
    for name, file in bad.items():
        answer = server.open("/v1/states/f", raw=file, method="PUT")
        message = json.loads(answer.read()).get("error", {"message": "taken"})["message"]
        assert answer.status == 400 and "\n" not in message and "/tmp" not in message, (name, message)
    assert server.open("/v1/states/f", raw=data * 20, method="PUT").status == 413
    assert "f" not in [one["name"] for one in server.ask("/v1/states")[1]["data"]]


@pytest.mark.parametrize(("body", "status", "message"), [
    ({"name": "a/b", "prompt": "x"}, 400, "name of a state"), ({"prompt": "x"}, 400, "name of a state"),
    ({"name": "x" * 65, "prompt": "x"}, 400, "name of a state"), ({"name": "x"}, 400, "prompt must be"),
    ({"name": "x", "prompt": ["a", "b"]}, 400, "one prompt"),
    ({"name": "x", "prompt": "a", "n": 2}, 400, "n is not known"),
    ({"name": "x", "prompt": "a", "messages": []}, 400, "both given"), ([], 400, "JSON object"),
    ({"name": "x", "prompt": "a", "state": "none"}, 404, "no state 'none'")])
def test_what_is_wrong_is_named(server, body, status, message):
    found, answer = server.ask("/v1/states", body)
    assert found == status and message in answer["error"]["message"]


def test_states_have_room_of_their_own(small_checkpoint):
    model = engine.load(small_checkpoint, "int8", threads=1)
    state = model.initial_state(1)
    states = States(model, 2 * state.nbytes, lambda: "")
    for name in ("a", "b", "a"):
        states.keep(name, Saved(state, 1, 1))
    with pytest.raises(InputError, match="delete a state first"):
        states.keep("c", Saved(state, 1, 1))
    states.drop("a")
    states.keep("c", Saved(state, 1, 1))
    assert [one["name"] for one in states.all()] == ["b", "c"]
