"""`bench serve`, the rest: what log-probabilities and the page's spikes cost, and an open loop.

In an open loop clients come as they do, at times that nobody waits for: gaps are exponential (Poisson arrivals), at a
share of the rate at which the server can write their texts. A server that is slower than that has a queue that grows.
"""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from symboliclight.benchmarks.harness import row, turns

SHARES = (0.3, 0.6, 0.9)  # of the rate at which texts are written when all places are taken
ARRIVALS = 60  # at each


def costs(client: Any, name: str, tokens: int) -> list[dict[str, Any]]:
    """Log-probabilities to who asks for them; spikes to a client beside the one that watches them."""
    found = turns({"plain": lambda: client.text(max_tokens=tokens),
                   "scored": lambda: client.text(max_tokens=tokens, logprobs=5)}, rounds=15)
    rows = [row(f"one client with logprobs 5 against without, {name} int8", "tokens/s", tokens / found.median("scored"),
                tokens / found.median("plain"), found.faster("scored", "plain"), 0.9)]

    def beside(**more: Any) -> None:
        with _endless(client, **more):
            client.text(max_tokens=tokens)

    found = turns({"plain": beside, "spikes": lambda: beside(spikes=True)}, rounds=15)
    return [*rows, row(f"a client beside one that watches spikes, against beside one that does not, {name} int8",
                       "tokens/s", tokens / found.median("spikes"), tokens / found.median("plain"),
                       found.faster("spikes", "plain"), 0.98)]


@contextmanager
def _endless(client: Any, **more: Any) -> Iterator[None]:
    """A stream without end, which is read as it comes."""
    answer = client.send(seed=1, max_tokens=10**6, stream=True, **more)
    answer.read1()
    reader = threading.Thread(target=_drain, args=(answer,))
    reader.start()
    try:
        yield
    finally:
        answer.fp.raw._sock.shutdown(2)  # the reader waits in a read: closing alone would not wake it
        reader.join()
        answer.close()


def _drain(answer: Any) -> None:
    with contextlib.suppress(http.client.IncompleteRead):  # the connection ends inside the stream
        while answer.read1(1 << 16):
            pass


def open_loop(client: Any, name: str, tokens: int, rate: float, seed: int = 0) -> list[dict[str, Any]]:
    """Seconds to the first token and between tokens at `SHARES` of `rate` texts a second, beside a client alone."""
    alone = [_asked(client, tokens, i) for i in range(9)]
    first, between = np.median([one[0] for one in alone]), np.median(np.concatenate([np.diff(one) for one in alone]))
    rows = []
    for share in SHARES:
        found = _arrive(client, tokens, share * rate, np.random.default_rng(seed))
        waits, gaps = [one[0] for one in found], np.concatenate([np.diff(one) for one in found])
        where = f"at {share:.0%} of {rate:.2f} texts a second, {ARRIVALS} texts of {tokens} tokens, {name} int8"
        for what, values, against in (("first token", waits, first), ("next token", gaps, between)):
            for percent in (50, 99):
                value = float(np.percentile(values, percent))
                rows.append(row(f"{what}, {percent} of 100 sooner, {where}, against a client alone", "s", value,
                                float(against), float(against) / value))
    return rows


def _arrive(client: Any, tokens: int, rate: float, random: np.random.Generator) -> list[list[float]]:
    """Ask as clients come; when each token of each came, seconds from its request."""
    found: list[list[float]] = []
    clients = [threading.Thread(target=lambda i=i: found.append(_asked(client, tokens, i))) for i in range(ARRIVALS)]
    start, due = time.perf_counter(), 0.0
    for one in clients:
        due += random.exponential(1 / rate)
        time.sleep(max(0.0, start + due - time.perf_counter()))
        one.start()
    for one in clients:
        one.join()
    return found


def _asked(client: Any, tokens: int, seed: int) -> list[float]:
    """When each token of one text came."""
    start, came = time.perf_counter(), []
    with client.send(seed=seed, max_tokens=tokens, stream=True, logprobs=0) as answer:  # a chunk a token
        for line in answer:
            if line.startswith(b"data: {"):
                count = len((json.loads(line[6:])["choices"][0]["logprobs"] or {"tokens": ()})["tokens"])
                came += [time.perf_counter() - start] * count
    return came
