"""`bench serve`: many clients of one server at once beside the same clients one after another.

The server is a process of its own, with random weights at int8, and the clients are real connections. First the texts
of clients that ask at once must be those that each gets alone.
"""

import http.client
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from symboliclight import engine
from symboliclight.benchmarks.harness import row, turns, write
from symboliclight.benchmarks.serve_load import costs, open_loop
from symboliclight.core import checkpoint
from symboliclight.core.config import preset
from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.engine.weights import exported_tensors
from symboliclight.generate.runner import SHIPPED
from symboliclight.generate.sampling import Sampling, generate
from symboliclight.model import build

CLIENTS = 16
HOW = Sampling(temperature=0.8, top_k=50)
PROMPT = list(range(300, 316))


@dataclass(frozen=True)
class Client:
    """Asks a server at a port of this machine."""

    port: int

    def send(self, **body: Any) -> http.client.HTTPResponse:
        """The answer to a request for a completion, not read yet."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = {"prompt": PROMPT, "seed": 0, "ignore_eos": True, **asdict(HOW), **body}
        link.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        return link.getresponse()

    def text(self, **body: Any) -> str:
        """The text that a request is answered with."""
        with self.send(**body) as answer:
            found = json.loads(answer.read())
        if "choices" not in found:
            raise InputError(f"bench serve: the server refused: {found}")
        return found["choices"][0]["text"]

    def waiting(self) -> int:
        """Texts whose prompts are not read yet."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        link.request("GET", "/health")
        return json.loads(link.getresponse().read())["waiting"]


@contextmanager
def server(folder: Path, threads: int) -> Iterator[Client]:
    """`symboliclight serve` as a process."""
    command = [sys.executable, "-m", "symboliclight.commands.cli", "serve", "--model", str(folder), "--port", "0",
               "--slots", str(CLIENTS), "--threads", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise InputError("bench serve: the server did not start; see above")
        try:
            yield Client(int(line.split("/v1")[0].rsplit(":", 1)[1]))
        finally:
            process.terminate()


def run(out: Path, quick: bool = False) -> Path:
    """Measure and write results/bench-serve.json; `quick` takes a small model to try the benchmark itself."""
    name, tokens, long, threads = ("mini", 8, 512, 1) if quick else ("v1-194m", 64, 2048, torch.get_num_threads())
    torch.manual_seed(0)
    config, tokenizer = preset(name), Tokenizer.load(SHIPPED)
    vocabulary = min(config.vocab_size, tokenizer.vocab_size)  # ids that both know
    tensors = {n: x.detach().numpy() for n, x in build(config).state_dict().items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        checkpoint.save(folder, config, exported_tensors(config, tensors, "int8"), tokenizer)
        with server(folder, threads) as client:
            rows, rate = _together(client, name, tokens)
            rows += _beside_the_runtime(client, engine.load(folder, threads=threads), tokenizer, name, tokens)
            rows += _first_token(client, name, long, vocabulary)
            rows += _behind(client, name, 64 * long, vocabulary)
            rows += _kept(client, name)
            rows += costs(client, name, tokens)
            rows += open_loop(client, name, tokens, rate)
    return write("serve", rows, out, threads=threads, clients=CLIENTS, quick=quick)


def _together(client: Client, name: str, tokens: int) -> tuple[list[dict[str, Any]], float]:
    """Rows, and texts a second when all places are taken."""
    def ask(seed: int) -> str:
        return client.text(seed=seed, max_tokens=tokens)

    def one_by_one() -> list[str]:
        return [ask(i) for i in range(CLIENTS)]

    def at_once(clients: int) -> Callable[[], list[str]]:
        def many() -> list[str]:
            with ThreadPoolExecutor(clients) as pool:
                return list(pool.map(ask, range(CLIENTS)))

        return many

    if one_by_one() != at_once(CLIENTS)():
        raise InputError("bench serve: texts written at once are not those written alone; not measured")
    contenders: dict[str, Callable[[], object]] = {"alone": one_by_one, "4": at_once(4), str(CLIENTS): at_once(CLIENTS)}
    found = turns(contenders, rounds=7)
    rate = {n: CLIENTS * tokens / found.median(n) for n in found.seconds}
    rows = [row(f"{n} clients at once against one after another, {name} int8, {tokens} tokens each", "tokens/s",
                rate[n], rate["alone"], found.faster(n, "alone"), asked)
            for n, asked in (("4", None), (str(CLIENTS), 5.0))]
    return rows, rate[str(CLIENTS)] / tokens


def _beside_the_runtime(client: Client, model: Any, tokenizer: Tokenizer, name: str, tokens: int
                        ) -> list[dict[str, Any]]:
    def direct() -> str:
        return generate(model, tokenizer, [PROMPT], tokens, HOW, stop_ids=())[0].text

    if direct() != client.text(max_tokens=tokens):
        raise InputError("bench serve: the server writes another text than the runtime; not measured")
    found = turns({"served": lambda: client.text(max_tokens=tokens), "direct": direct}, rounds=15, twice=True)
    return [row(f"one client against the runtime without a server, {name} int8", "tokens/s",
                tokens / found.median("served"), tokens / found.median("direct"), found.faster("served", "direct"),
                0.95)]


def _first_token(client: Client, name: str, long: int, vocabulary: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    fresh = (random.integers(300, vocabulary, long).tolist() for _ in itertools.count())
    known = next(fresh)
    found = turns({"known": lambda: client.text(prompt=known, max_tokens=1),
                   "new": lambda: client.text(prompt=next(fresh), max_tokens=1)}, rounds=7)
    rows = [row(f"first token after {long} tokens that were read before, against reading them, {name} int8", "s",
                found.median("known"), found.median("new"), found.faster("known", "new"))]
    alone = turns({"alone": lambda: client.text(max_tokens=1)}, rounds=15)
    others = [client.send(seed=i, max_tokens=10**6, stream=True) for i in range(CLIENTS - 1)]
    beside = turns({"beside": lambda: client.text(max_tokens=1)}, rounds=15)
    for other in others:
        other.close()
    return [*rows, row(f"a client's first token while {CLIENTS - 1} texts are written, against alone, {name} int8", "s",
                       beside.median("beside"), alone.median("alone"),
                       alone.median("alone") / beside.median("beside"), round(1 / 3, 3))]


def _behind(client: Client, name: str, long: int, vocabulary: int) -> list[dict[str, Any]]:
    """A short prompt behind a long one, which must still be read when the last short one is answered."""
    alone = turns({"alone": lambda: client.text(max_tokens=1)}, rounds=15)
    endless = np.random.default_rng(1).integers(300, vocabulary, long).tolist()
    first = client.send(prompt=endless, max_tokens=1, stream=True)
    beside = turns({"beside": lambda: client.text(max_tokens=1)}, rounds=15)
    if not client.waiting():
        raise InputError("bench serve: the long prompt was read too soon; not measured")
    first.close()
    return [row(f"a client's first token behind a prompt of {long} tokens, against alone, {name} int8", "s",
                beside.median("beside"), alone.median("alone"), alone.median("alone") / beside.median("beside"))]


def _kept(client: Client, name: str) -> list[dict[str, Any]]:
    """Requests of one connection; delayed acknowledgements would cost each of them 40 ms."""
    link = http.client.HTTPConnection("127.0.0.1", client.port, timeout=600)
    body = json.dumps({"prompt": PROMPT, "seed": 0, "ignore_eos": True, **asdict(HOW), "max_tokens": 1})

    def ask() -> bytes:
        link.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        return link.getresponse().read()

    found = turns({"kept": ask, "new": lambda: client.text(max_tokens=1)}, rounds=15)
    link.close()
    return [row(f"a request on a kept connection, against one on a new connection, {name} int8", "s",
                found.median("kept"), found.median("new"), found.faster("kept", "new"))]
