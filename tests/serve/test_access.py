"""A server left running: names of requests, lines of its log, limits of clients, several keys, an end in good order."""

import json
import signal
import threading
import time

import pytest
from live import Server

from symboliclight.serve.limits import CLIENTS, Limits, TooMany

TEXT = {"prompt": "the old", "ignore_eos": True, "seed": 1}


def test_requests_come_back_with_time():
    now = [0.0]
    limits = Limits(requests=6, clock=lambda: now[0])
    for _ in range(6):
        limits.admit("a")
    limits.admit("b")  # others are not touched
    with pytest.raises(TooMany, match="6 requests a minute") as refused:
        limits.admit("a")
    assert refused.value.seconds == 10 and limits.refused == 1
    now[0] = 9.9
    with pytest.raises(TooMany):
        limits.admit("a")
    now[0] = 10.1
    limits.admit("a")
    with pytest.raises(TooMany):
        limits.admit("a")


def test_tokens_are_owed_and_paid_back():
    now = [0.0]
    limits = Limits(tokens=60, clock=lambda: now[0])
    limits.admit("a")
    limits.spend("a", 100)  # known at the end only
    with pytest.raises(TooMany, match="60 tokens a minute") as refused:
        limits.admit("a")
    assert 40 <= refused.value.seconds <= 41
    now[0] = 40 + refused.value.seconds - 39
    limits.admit("a")
    now[0] = 10_000
    limits.spend("a", 59)  # a bucket holds no more than a minute's worth
    limits.admit("a")
    limits.spend("a", 1)
    with pytest.raises(TooMany):
        limits.admit("a")


def test_few_clients_are_remembered():
    limits = Limits(requests=1, clock=lambda: 0.0)
    limits.admit("first")
    for i in range(CLIENTS):
        limits.admit(str(i))
    limits.admit("first")  # forgotten
    with pytest.raises(TooMany):
        limits.admit(str(CLIENTS - 1))


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("open sesame\n\nand another\n")
    return file


def test_limits_names_and_lines(small_checkpoint, keys):
    server = Server("--model", str(small_checkpoint), "--precision", "int8", "--threads", "1", "--key-file", str(keys),
                    "--limit-requests", "3", "--limit-tokens", "100", "--log", "json")
    first, other = ({"Authorization": f"Bearer {key}"} for key in ("open sesame", "and another"))
    assert server.ask("/v1/completions", TEXT)[0] == 401
    answer = server.open("/v1/completions", {**TEXT, "max_tokens": 7}, X_Request_Id="mine-1", **first)
    used = json.loads(answer.read())["usage"]
    assert answer.status == 200 and answer.headers["x-request-id"] == "mine-1"
    stream = server.open("/v1/completions", {**TEXT, "max_tokens": 90, "stream": True}, X_Request_Id="no good", **first)
    stream.read()
    assert stream.headers["x-request-id"] not in ("no good", "mine-1")
    late = server.open("/v1/completions", {**TEXT, "max_tokens": 7}, **first)
    message = json.loads(late.read())["error"]
    assert late.status == 429 and int(late.headers["retry-after"]) >= 1 and message["type"] == "rate_limit_error"
    assert "100 tokens a minute" in message["message"]
    for status in (200, 200, 200, 429):
        answer = server.open("/v1/completions", {**TEXT, "max_tokens": 1}, **other)
        said = json.loads(answer.read())
        assert answer.status == status, said
    assert "3 requests a minute" in said["error"]["message"]
    assert server.ask("/v1/models", **other)[0] == 200  # looking costs nothing
    code, out, err = server.stop()
    lines = [json.loads(line) for line in err.splitlines()]
    assert (code, out) == (0, "stopped\n")
    assert [line["status"] for line in lines] == [401, 200, 200, 429, 200, 200, 200, 429, 200]
    mine = lines[1]
    assert (mine["id"], mine["path"], mine["method"]) == ("mine-1", "/v1/completions", "POST")
    assert mine["client"] == "127.0.0.1"
    assert (mine["prompt_tokens"], mine["written_tokens"]) == (used["prompt_tokens"], 7) and mine["model"]
    assert lines[2]["written_tokens"] == 90 and lines[2]["seconds"] > 0 and "written_tokens" not in lines[3]


@pytest.mark.parametrize(("drain", "whole"), [("30", True), ("0", False)])
def test_sigterm_lets_texts_end_for_so_long(small_checkpoint, drain, whole):
    server = Server("--model", str(small_checkpoint), "--precision", "int8", "--threads", "1", "--drain", drain)
    link, found = server.connect(), []
    link.request("POST", "/v1/completions", json.dumps({**TEXT, "max_tokens": 3000, "stream": True}),
                 {"Content-Type": "application/json"})
    answer = link.getresponse()
    answer.read(200)
    reader = threading.Thread(target=lambda: found.append(answer.read().decode()))
    reader.start()
    while not server.running():
        time.sleep(0.01)
    assert server.stop(signal.SIGTERM) == (0, "stopped\n", "")
    reader.join()
    last = found[0].strip().splitlines()[-1]
    assert (last == "data: [DONE]") is whole and ("the server is stopping" in last) is not whole
