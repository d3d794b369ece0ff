"""All at once that clients do wrong: afterwards no place, state or memory is lost, and what was written is right.

A failure names the seed; the same seed sends the same requests, though not at the same times.
"""

import contextlib
import http.client
import json
import random
import re
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from live import Server

from symboliclight import engine
from symboliclight.generate.sampling import Sampling, generate

KEY = {"Authorization": "Bearer open sesame", "Content-Type": "application/json"}
PROMPTS = ("the old river", "春天的风 the old city 🌊", "the sun " * 150, "a", "江 " * 300)
TOKENS, SLOTS, CLIENTS, MOST = 24, 4, 6, 4000


class Chaos:
    """Clients of one server, and what they saw."""

    def __init__(self, port, expected, seed):
        self.port, self.expected, self.seed = port, expected, seed
        self.wrong, self.counts = [], dict.fromkeys(self.actions(), 0)

    def actions(self):
        return [name for name in sorted(dir(self)) if name.startswith("do_")]

    def run(self, seconds):
        end = time.monotonic() + seconds
        clients = [threading.Thread(target=self.client, args=(random.Random(f"{self.seed}-{i}"), end))
                   for i in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()

    def client(self, draw, end):
        while time.monotonic() < end:
            action = draw.choice(self.actions())
            try:
                getattr(self, action)(draw)
                self.counts[action] += 1
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(f"{action}: {error!r}")

    def link(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, path, body, headers=KEY, method="POST"):
        link = self.link()
        link.request(method, path, body if isinstance(body, bytes) else json.dumps(body), headers)
        answer = link.getresponse()
        return answer.status, answer.read()

    def must(self, right, what):
        if not right:
            self.wrong.append(what)

    def body(self, draw, **more):
        prompt, seed = draw.choice(list(self.expected))
        return (prompt, seed), {"prompt": prompt, "seed": seed, "max_tokens": TOKENS, "ignore_eos": True, **more}

    def do_whole(self, draw):
        key, body = self.body(draw)
        status, answer = self.ask("/v1/completions", body)
        if status != 503:  # too many wait
            self.must(status == 200 and json.loads(answer)["choices"][0]["text"] == self.expected[key],
                      f"whole {key}: {status} {answer[:200]}")

    def do_stream(self, draw):
        """Some clients read slowly."""
        key, body = self.body(draw, stream=True, logprobs=2) if draw.random() < 0.3 else self.body(draw, stream=True)
        link, pause = self.link(), draw.choice((0, 0, 0.01))
        link.request("POST", "/v1/completions", json.dumps(body), KEY)
        answer, data = link.getresponse(), b""
        while part := answer.read1(draw.choice((7, 100, 4000))):
            data += part
            time.sleep(pause)
        if answer.status == 503:
            return
        lines = [line[6:] for line in data.decode().split("\n\n") if line]
        text = "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])
        self.must(lines[-1] == "[DONE]" and text == self.expected[key], f"stream {key}: {text!r}")

    def do_leave(self, draw):
        _, body = self.body(draw, stream=draw.random() < 0.7, n=draw.choice((1, 3)), max_tokens=3000)
        link = self.link()
        link.request("POST", "/v1/completions", json.dumps(body), KEY)
        if body["stream"]:
            link.getresponse().read(draw.randrange(400))
        else:
            time.sleep(draw.random() / 20)
        link.close()

    def do_half_a_request(self, draw):
        with socket.create_connection(("127.0.0.1", self.port)) as raw:
            whole = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{"
            raw.sendall(whole[: draw.randrange(len(whole))])

    def do_huge_prompt(self, draw):
        status, _ = self.ask("/v1/completions", {"prompt": [300] * draw.choice((MOST + 1, 90_000))})
        self.must(status == 400, f"huge prompt: {status}")

    def do_long_prompt(self, draw):
        status, answer = self.ask("/v1/completions", {"prompt": [300 + draw.randrange(99) for _ in range(MOST)],
                                                      "max_tokens": 1})
        self.must(status in (200, 503), f"long prompt: {status} {answer[:99]}")

    def do_bad_body(self, draw):
        bad = (b"", b"{", b"\xff\xfe", b"[" * 3000, b"null", b'{"prompt": 5}', b'{"prompt": "a", "n": 99}',
               draw.randbytes(99), b'{"prompt": "a", "stop": [""]}', b'{"prompt": "a", "temperature": 1e999}',
               b'{"prompt": "\\ud800"}')
        status, answer = self.ask("/v1/completions", draw.choice(bad))
        self.must(status == 400 and b"message" in answer, f"bad body: {status} {answer[:99]}")

    def do_bad_key(self, draw):
        """Not a token, and nothing about one."""
        _, body = self.body(draw, stream=draw.random() < 0.5)
        path = draw.choice(("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/states"))
        status, answer = self.ask(path, body, {"Content-Type": "application/json",
                                               "Authorization": draw.choice(("", "Bearer ", "Bearer open sesam"))})
        self.must(status == 401 and set(json.loads(answer)) == {"error"}, f"bad key: {status} {answer[:99]}")

    def do_states(self, draw):
        name = f"s{draw.randrange(3)}"
        for method, path, body in (("POST", "/v1/states", {"name": name, "prompt": draw.choice(PROMPTS)}),
                                   ("PUT", f"/v1/states/{name}", draw.randbytes(500)),
                                   ("GET", f"/v1/states/{name}", b""), ("DELETE", f"/v1/states/{name}", b"")):
            status, _ = self.ask(path, body, method=method)
            self.must(status in (200, 400, 404, 503), f"{method} {path}: {status}")

    def do_leave_a_state(self, draw):
        link = self.link()
        link.request("POST", "/v1/states", json.dumps({"name": "gone", "prompt": [300] * MOST}), KEY)
        time.sleep(draw.random() / 20)
        link.close()

    def do_embeddings(self, draw):
        status, _ = self.ask("/v1/embeddings", {"input": list(PROMPTS)})
        self.must(status == 200, f"embeddings: {status}")


def rss(server):
    """Resident bytes of the process, once it is idle."""
    deadline = time.monotonic() + 60
    while (load := server.ask("/health")[1])["running"] + load["waiting"]:
        assert time.monotonic() < deadline, f"texts are left behind: {load}"
        time.sleep(0.05)
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())[1]) << 10


@pytest.fixture
def expected(small_checkpoint, small_tokenizer):
    """What is written alone: (prompt, seed) -> text."""
    model = engine.load(small_checkpoint, "int8", threads=1)
    return {(prompt, seed): generate(model, small_tokenizer, [small_tokenizer.encode(prompt, bos=True)], TOKENS,
                                     Sampling(temperature=0.8, top_k=50), stop_ids=(), seed=seed)[0].text
            for prompt in PROMPTS for seed in (1, 2)}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("seconds", [6, pytest.param(120, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_nothing_is_lost_whatever_clients_do(seconds, small_checkpoint, expected, tmp_path):
    seed = int(np.random.default_rng().integers(1 << 30))
    (tmp_path / "key").write_text("open sesame")
    server = Server("--model", str(small_checkpoint), "--precision", "int8", "--threads", "1", "--slots", str(SLOTS),
                    "--memory", "1", "--state-memory", "1", "--max-prompt", str(MOST), "--key-file",
                    str(tmp_path / "key"))
    chaos = Chaos(server.port, expected, seed)
    with contextlib.ExitStack() as stack:
        stack.callback(server.process.kill)
        chaos.run(seconds / 2)
        sizes = [rss(server)]
        for _ in range(3):  # caches fill, and threads come as they are needed: what leaks grows in every round
            chaos.run(seconds)
            sizes.append(rss(server))
            if sizes[-1] < 1.05 * sizes[-2]:
                break
        assert not chaos.wrong, f"seed {seed}: {chaos.wrong[:5]}"
        assert all(chaos.counts.values()), f"seed {seed}: {chaos.counts}"
        assert sizes[-1] < 1.05 * sizes[-2], f"seed {seed}: bytes after each round: {sizes}"
        key, body = chaos.body(random.Random(0))
        found = server.ask("/v1/completions", body, **{"Authorization": KEY["Authorization"]})[1]
        assert found["choices"][0]["text"] == expected[key]
        links = [chaos.link() for _ in range(3)]
        for link in links:  # SIGTERM finds texts at work
            link.request("POST", "/v1/completions", json.dumps({**body, "max_tokens": 100_000, "stream": True}), KEY)
            link.getresponse().read(100)
        assert server.stop(signal.SIGTERM) == (0, "stopped\n", "")
