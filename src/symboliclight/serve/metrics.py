"""What a server has done, as Prometheus reads it (text format 0.0.4)."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

CONTENT = "text/plain; version=0.0.4; charset=utf-8"
FIRST = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)  # seconds, upper bounds
BETWEEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


@dataclass
class Counts:
    """What the writer has done since it started."""

    texts: int = 0
    prompt_tokens: int = 0  # read, remembered ones not counted
    cached_tokens: int = 0
    written_tokens: int = 0
    steps: int = 0  # calls of the model that wrote


class Histogram:
    """How many values were at most each of the bounds. One thread observes, any reads."""

    def __init__(self, bounds: Collection[float]) -> None:
        self._bounds, self._sum = tuple(bounds), 0.0
        self._counts = [0] * (len(self._bounds) + 1)

    def observe(self, value: float) -> None:
        """One more value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> Iterator[tuple[str, float]]:
        """Endings of names, and values."""
        below = 0
        for bound, count in zip((*self._bounds, "+Inf"), list(self._counts), strict=True):
            below += count
            yield f'_bucket{{le="{bound}"}}', below
        yield "_sum", self._sum
        yield "_count", below


class Requests:
    """ASGI middleware that counts answers by path and status; paths that are not served are one."""

    def __init__(self, app: Any, counts: Counter[tuple[str, int]], paths: Collection[str]) -> None:
        self._app, self._counts, self._paths = app, counts, paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, begun = scope["path"], False
        path = path if path in self._paths else "other"

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._counts[path, message["status"]] += 1
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            self._counts[path, 500] += not begun
            raise


Family = tuple[str, str, str, list[tuple[str, float]]]  # name, kind, what it is, endings of names and values


def exposition(writers: Mapping[str, Any], requests: Mapping[tuple[str, int], int]) -> str:
    """All figures of the `Writer` of each model, and of requests."""
    answered: Family = ("requests_total", "counter", "Answers, by path and status.", [
        (f'{{path="{path}",status="{status}"}}', count) for (path, status), count in sorted(requests.items())])
    families = {answered[0]: answered}
    for model, writer in writers.items():
        for name, kind, about, samples in _families(writer):
            family = families.setdefault(name, (name, kind, about, []))
            family[3].extend((_labelled(end, model), value) for end, value in samples)
    lines = []
    for name, kind, about, samples in families.values():
        name = f"symboliclight_{name}"
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{end} {value}" for end, value in samples]
    return "\n".join(lines) + "\n"


def _labelled(end: str, model: str) -> str:
    """The ending of a name with the model among its labels."""
    escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    suffix, brace, labels = end.partition("{")
    return f'{suffix}{{model="{escaped}"' + (f",{labels}" if brace else "}")


def _families(writer: Any) -> list[Family]:
    counts, (running, waiting) = writer.counts, writer.load()
    return [
        ("queue", "gauge", "Texts that wait, or whose prompts are being read.", [("", waiting)]),
        ("slots", "gauge", "Texts that can be written at once.", [("", writer.slots)]),
        ("slots_busy", "gauge", "Texts that are being written.", [("", running)]),
        ("prompt_tokens_total", "counter", "Tokens of prompts, read or remembered.",
         [('{source="read"}', counts.prompt_tokens), ('{source="remembered"}', counts.cached_tokens)]),
        ("written_tokens_total", "counter", "Tokens written.", [("", counts.written_tokens)]),
        ("memory_bytes", "gauge", "States of texts that were read, and their ids.", [("", writer.memory.nbytes)]),
        ("time_to_first_token_seconds", "histogram", "From a text's arrival to its first token.",
         list(writer.first.samples())),
        ("time_between_tokens_seconds", "histogram", "From a token of a text to its next.",
         list(writer.between.samples())),
    ]
