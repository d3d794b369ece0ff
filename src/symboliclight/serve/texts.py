"""What a writer is given, and what it tells of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from symboliclight.generate.logprobs import Score
from symboliclight.generate.sampling import Finish, Row


class Busy(Exception):
    """A text is not taken, or not written to its end, because of others, or because the writer stops."""


class Event(NamedTuple):
    """What happened to one row of a text."""

    row: int
    piece: str = ""
    finish: Finish = ""  # with the last piece
    error: Exception | None = None  # the whole text has ended
    spikes: dict[str, Any] | None = None  # of one token, where the text asks for them: `spikes.Meter.tokens`


@dataclass(eq=False)
class Text:
    """A prompt, continued by each of `rows`. The writer's thread tells what happens; any thread may set `cancelled`."""

    prompt: list[int]
    rows: list[Row]
    tell: Callable[[Event], None]
    cancelled: bool = False
    cached: int = 0  # tokens of the prompt that were remembered
    scored: int | None = None  # score the prompt's tokens too, beside so many of the likeliest: it is read whole
    only_read: bool = False  # end behind the prompt, and write nothing
    quiet: bool = False  # tell its end alone: whoever waits for the whole text need not be woken for every token
    spikes: bool = False  # tell who spiked, an event a token
    begin: Any = None  # the state that the prompt is read behind; None: of nothing
    kept: Any = None  # of one that is only read: the state before its last token, once it has ended
    submitted: float = 0.0  # when, by the monotonic clock
    scores: list[Score] = field(default_factory=list)  # of the prompt's tokens
