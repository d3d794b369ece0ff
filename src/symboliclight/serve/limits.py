"""How much one key, or one address, may ask for: so many requests and so many tokens a minute.

A bucket a client and kind: it holds a minute's worth, fills at that rate, and lets in while it is not empty. Tokens are
taken when they are known, once an answer has ended, so a bucket may owe some; the next request then waits.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

CLIENTS = 10_000  # that are remembered; who was last here longest ago begins anew


class TooMany(Exception):
    """A client has asked for too much; it may come again in `seconds`."""

    def __init__(self, kind: str, rate: int, seconds: int) -> None:
        super().__init__(f"this server takes {rate:,} {kind} a minute of each client; ask again in {seconds} s")
        self.seconds = seconds


@dataclass
class Limits:
    """Requests and tokens a minute of each client; None: as many as it likes."""

    requests: int | None = None
    tokens: int | None = None
    clock: Callable[[], float] = time.monotonic
    refused: int = field(default=0, init=False)
    _buckets: OrderedDict[tuple[str, str], tuple[float, float]] = field(default_factory=OrderedDict, init=False)

    def admit(self, client: str) -> None:
        """Let one request in. Raises `TooMany`."""
        for kind, rate, least in (("tokens", self.tokens, 0.0), ("requests", self.requests, 1.0)):
            if rate is None:
                continue
            held = self._held(client, kind, rate)
            if held < least or held <= 0:
                self.refused += 1
                raise TooMany(kind, rate, max(1, -int(-(max(least, 1) - held) * 60 // rate)))
        self._take(client, "requests", self.requests, 1)

    def spend(self, client: str, tokens: int) -> None:
        """What an answer has cost."""
        self._take(client, "tokens", self.tokens, tokens)

    def _held(self, client: str, kind: str, rate: int) -> float:
        held, at = self._buckets.get((client, kind), (float(rate), self.clock()))
        return min(float(rate), held + (self.clock() - at) * rate / 60)

    def _take(self, client: str, kind: str, rate: int | None, count: int) -> None:
        if rate is None:
            return
        held = self._held(client, kind, rate) - count
        self._buckets[client, kind] = held, self.clock()
        self._buckets.move_to_end((client, kind))
        while len(self._buckets) > CLIENTS:
            self._buckets.popitem(last=False)
