"""The server as a process, and requests over a real connection."""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from live import SERVE, Server

from symboliclight import engine
from symboliclight.commands.serve import _listen
from symboliclight.generate.sampling import Sampling, generate

HOW = {"temperature": 0.9, "top_k": 30}


@pytest.fixture(scope="module")
def server(small_checkpoint):
    server = Server("--model", str(small_checkpoint), "--precision", "int8", "--slots", "4", "--max-tokens", "20")
    yield server
    code, out, err = server.stop()
    assert (code, out, err) == (0, "stopped\n", "")


@pytest.fixture(scope="module")
def alone(small_checkpoint, small_tokenizer):
    model = engine.load(small_checkpoint, "int8", threads=1)

    def write(prompt, seed, n=1, max_tokens=20):
        ids = small_tokenizer.encode(prompt, bos=True)
        return generate(model, small_tokenizer, [ids] * n, max_tokens, Sampling(**HOW), seed=seed)

    return write


def test_the_first_line_says_what_is_served_and_where(server):
    assert server.line.startswith("model at int8, 4 texts at once: http://127.0.0.1:")


def test_an_answer_is_what_generate_writes(server, alone, small_tokenizer):
    status, answer = server.ask("/v1/completions", {"prompt": "the old", "seed": 3, "n": 2, **HOW})
    texts = alone("the old", 3, 2)
    assert status == 200 and answer["object"] == "text_completion" and answer["seed"] == 3
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(i, t.text) for i, t in enumerate(texts)]
    assert {c["finish_reason"] for c in answer["choices"]} <= {"stop", "length"}
    read, written = len(small_tokenizer.encode("the old", bos=True)), sum(len(t.ids) for t in texts)
    assert answer["usage"] | {"prompt_tokens_details": 0} == {
        "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written, "prompt_tokens_details": 0}


def test_many_clients_at_once_get_what_each_gets_alone(server, alone):
    def ask(i):
        body = {"prompt": "the light " * (1 + i % 4), "seed": i, "max_tokens": 5 + 7 * (i % 5), **HOW}
        return server.ask("/v1/completions", body)[1]["choices"][0]["text"]

    with ThreadPoolExecutor(12) as pool:
        texts = list(pool.map(ask, range(24)))
    assert texts == [alone("the light " * (1 + i % 4), i, max_tokens=5 + 7 * (i % 5))[0].text for i in range(24)]


def test_a_stream_joins_to_the_text(server, alone):
    chunks = server.stream("/v1/completions", {"prompt": ["春天", "the"], "seed": 5, "max_tokens": 30, **HOW,
                                               "stream_options": {"include_usage": True}})
    *said, last = chunks
    for i, prompt in enumerate(("春天", "the")):
        mine = [c["choices"][0] for c in said if c["choices"][0]["index"] == i]
        assert "".join(c["text"] for c in mine) == alone(prompt, 5 + i, max_tokens=30)[0].text
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [mine[-1]["finish_reason"]]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] > 0


def test_penalties_and_biases_hold_for_every_choice_whole_and_streamed(server, small_tokenizer):
    body = {"prompt": ["the", "春天"], "seed": 5, "n": 3, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    banned = small_tokenizer.encode("e")[-1]
    shifted = {"presence_penalty": 2, "frequency_penalty": 2, "logit_bias": {str(banned): -100}, "logprobs": 0}
    plain, whole = (server.ask("/v1/completions", body | more)[1]["choices"] for more in ({"logprobs": 0}, shifted))
    for choice, other in zip(plain, whole, strict=True):
        tokens = other["logprobs"]["tokens"]
        assert "e" not in tokens and len(set(tokens)) > len(set(choice["logprobs"]["tokens"]))
    chunks = [c["choices"][0] for c in server.stream("/v1/completions", body | shifted | {"temperature": 1.3})]
    sampled = server.ask("/v1/completions", body | shifted | {"temperature": 1.3})[1]["choices"]
    assert len({c["text"] for c in sampled}) == 6
    for choice in sampled:
        mine = [c for c in chunks if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"] and mine[-1]["finish_reason"] == "length"


def test_a_chat_whole_and_as_a_stream(server):
    body = {"messages": [{"role": "user", "content": "the old city"}], "seed": 1, **HOW}
    answer = server.ask("/v1/chat/completions", body)[1]
    whole = answer["choices"][0]["message"]
    chunks = [c["choices"][0] for c in server.stream("/v1/chat/completions", body)]
    assert whole["role"] == chunks[0]["delta"]["role"] == "assistant"
    assert "".join(c["delta"].get("content", "") for c in chunks) == whole["content"]
    assert chunks[-1]["delta"] == {} and chunks[-1]["finish_reason"] == answer["choices"][0]["finish_reason"]


def test_what_was_said_before_is_not_read_again(server):
    first = {"prompt": "nobody in the house " * 20, "seed": 1, **HOW}
    text = server.ask("/v1/completions", first)[1]["choices"][0]["text"]
    longer = {**first, "prompt": first["prompt"] + text + " and the river"}
    used = server.ask("/v1/completions", longer)[1]["usage"]
    assert used["prompt_tokens_details"]["cached_tokens"] > used["prompt_tokens"] // 2


def test_models_and_figures(server):
    assert server.ask("/v1/models")[1]["data"][0]["id"] == "model"
    stats = server.ask("/stats")[1]
    assert stats["written_tokens"] >= stats["steps"] > 0
    assert 0 < stats["runtime"]["bytes"]["tcam"] < stats["runtime"]["whole"]["tcam"]


def test_a_model_is_found_by_its_name(server):
    assert server.ask("/v1/models/model") == (200, server.ask("/v1/models")[1]["data"][0])
    assert server.ask("/v1/models/")[1]["object"] == "list"
    status, answer = server.ask("/v1/models/gpt/4")
    assert status == 404 and "there is no model gpt/4; this server has model" in answer["error"]["message"]


def test_an_accepted_connection_sends_at_once():
    """By the option of the socket that asyncio makes; without it each answer waits 40 ms for an acknowledgement."""
    async def accepted():
        found = asyncio.get_running_loop().create_future()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport):
                found.set_result(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                transport.close()

        async with await asyncio.get_running_loop().create_server(Protocol, sock=_listen("127.0.0.1", 0)) as listening:
            link = socket.create_connection(listening.sockets[0].getsockname())
            option = await found
            link.close()
        return option

    assert asyncio.run(accepted())


def test_a_kept_connection_is_answered_as_fast_as_a_new_one(server):
    def ask(link):
        start = time.perf_counter()
        link.request("POST", "/v1/completions", json.dumps({"prompt": "a", "max_tokens": 1}),
                     {"Content-Type": "application/json"})
        link.getresponse().read()
        return time.perf_counter() - start

    kept = server.connect()
    seconds = [ask(kept) for _ in range(12)]
    assert min(seconds[1:]) < 0.035, "every answer took 40 ms: it waited for an acknowledgement"


@pytest.mark.parametrize(("path", "body", "status", "message"), [
    ("/v1/completions", {"prompt": "a", "tools": [1]}, 400, "tools is not offered"),
    ("/v1/completions", {"prompt": 5}, 400, "prompt must be"),
    ("/v1/completions", {"prompt": "a", "n": 5}, 400, "n is 5"),
    ("/v1/completions", None, 405, "GET /v1/completions"), ("/v1/images", {"input": "a"}, 404, "POST /v1/images"),
    ("/v1/chat/completions", {"messages": []}, 400, "messages must be"),
])
def test_a_refusal_says_why_as_json(server, path, body, status, message):
    found, answer = server.ask(path, body)
    assert found == status and message in answer["error"]["message"]


def test_what_is_not_json_is_refused(server):
    assert server.ask("/v1/completions", raw="{")[0] == 400
    assert server.ask("/v1/completions", raw="[" * 100000)[0] == 400
    assert server.ask("/v1/completions", raw="{}", Content_Type="text/plain")[0] == 415
    assert server.ask("/v1/completions", raw=" " * (9 << 20))[0] == 413


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(server, stream):
    link = server.connect()
    body = {"prompt": "the", "max_tokens": 10**6, "stream": stream, "ignore_eos": True}
    link.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    deadline = time.monotonic() + 30
    while not server.running() and time.monotonic() < deadline:
        time.sleep(0.01)
    link.sock.shutdown(socket.SHUT_RDWR)
    link.close()
    while server.running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.running() == 0


def test_a_key_is_wanted_and_ctrl_c_ends_texts_that_run(small_checkpoint, tmp_path):
    (tmp_path / "key").write_text("open sesame\n")
    server = Server("--model", str(small_checkpoint), "--key-file", str(tmp_path / "key"), "--memory", "0")
    assert server.ask("/health")[0] == 200
    assert server.ask("/v1/models")[0] == 401
    assert server.ask("/v1/completions", {"prompt": "a"}, Authorization="Bearer open")[0] == 401
    assert server.ask("/v1/models", Authorization="Bearer open sesame")[0] == 200
    link = server.connect()
    endless = {"prompt": "a", "max_tokens": 10**6, "stream": True, "ignore_eos": True}
    link.request("POST", "/v1/completions", json.dumps(endless),
                 {"Content-Type": "application/json", "Authorization": "Bearer open sesame"})
    answer = link.getresponse()
    assert answer.readline().startswith(b"data: ")
    rest = []
    reader = threading.Thread(target=lambda: rest.append(answer.read()))
    reader.start()
    assert server.stop() == (0, "stopped\n", "")
    reader.join()
    assert "the server is stopping" in rest[0].decode().strip().splitlines()[-1]


def test_a_line_for_every_request_goes_to_stderr(small_checkpoint):
    server = Server("--model", str(small_checkpoint), "--log")
    assert server.ask("/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200
    code, out, err = server.stop()
    assert (code, out) == (0, "stopped\n") and '"POST /v1/completions HTTP/1.1" 200' in err


@pytest.mark.parametrize(("options", "message"), [
    (["--slots", "0"], "--slots must be at least 1"), (["--memory", "-1"], "--memory must be"),
    (["--key-file", "/nowhere"], "cannot read /nowhere"), (["--temperature", "-1"], "--temperature must be"),
    (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    (["--max-prompt", "0"], "--max-prompt must be at least 1"), (["--cors", "example.org"], "--cors wants an origin"),
    (["--cors", "https://a.org/b"], "--cors wants an origin"), (["--api-prefix", "model"], "--api-prefix wants a path"),
    (["--api-prefix", "/a/"], "--api-prefix wants a path"), (["--api-prefix", "/{x}"], "--api-prefix wants a path"),
    (["--port", "99999"], "cannot listen"), (["--model", "/nowhere"], "/nowhere"),
])
def test_bad_options_are_one_line(small_checkpoint, options, message):
    done = subprocess.run([*SERVE, "--model", str(small_checkpoint), *options], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_a_model_whose_texts_would_depend_on_each_other_is_refused(small_checkpoint, tmp_path):
    shutil.copytree(small_checkpoint, tmp_path / "early")
    config = json.loads((tmp_path / "early" / "config.json").read_text())
    config["model"]["exit_entropy"] = 0.3
    (tmp_path / "early" / "config.json").write_text(json.dumps(config))
    done = subprocess.run([*SERVE, "--model", str(tmp_path / "early")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "model.exit_entropy" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_named(small_checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [*SERVE, "--model", str(small_checkpoint), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and f"port {port}: Address already in use" in done.stderr


def test_without_its_packages_it_says_what_to_install(small_checkpoint):
    code = ("import sys; sys.modules['uvicorn'] = None; from symboliclight.commands.cli import main; "
            f"sys.exit(main(['serve', '--model', {str(small_checkpoint)!r}]))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'symboliclight[serve]'" in done.stderr
