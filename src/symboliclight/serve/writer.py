"""Continuous batching: texts join the batch and leave it between two tokens.

One thread owns the model. A turn of it reads a piece of what waits, then writes a token of every text that runs, all of
them in one call of the model: they share one reading of its weights. On the runtime a sum has one order whatever the
batch, so a text is the same, bit for bit, whoever else is written beside it.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from symboliclight.errors import InputError
from symboliclight.sampling import Finish, Row, next_logits, padded_state
from symboliclight.serve.memory import Memory
from symboliclight.serve.slots import slots_of

PIECE = 256  # tokens of prompts read between two written ones; states at multiples of it are remembered
STOPPING = "the server is stopping; ask again later"


class Busy(Exception):
    """A text is not taken, or not written to its end, because of others, or because the writer stops."""


class Event(NamedTuple):
    """What happened to one row of a text."""

    row: int
    piece: str = ""
    finish: Finish = ""  # with the last piece
    error: Exception | None = None  # the whole text has ended


@dataclass(eq=False)
class Text:
    """A prompt, continued by each of `rows`. The writer's thread tells what happens; any thread may set `cancelled`."""

    prompt: list[int]
    rows: list[Row]
    tell: Callable[[Event], None]
    cancelled: bool = False
    cached: int = 0  # tokens of the prompt that were remembered


@dataclass(eq=False)
class _Reading:
    text: Text
    state: Any  # None: nothing read yet
    read: int  # tokens


@dataclass(eq=False)
class _Running:
    text: Text
    index: int  # of the row in its text
    token: int  # chosen, not read yet

    @property
    def row(self) -> Row:
        return self.text.rows[self.index]


@dataclass
class Counts:
    """What the writer has done since it started."""

    texts: int = 0
    prompt_tokens: int = 0  # read, remembered ones not counted
    cached_tokens: int = 0
    written_tokens: int = 0
    steps: int = 0  # calls of the model that wrote


@dataclass(eq=False)
class Writer:
    """Writes up to `slots` rows at once; up to `queue` texts wait. Close it, or use it as a context."""

    model: Any
    slots: int
    memory: Memory
    queue: int = 256
    counts: Counts = field(default_factory=Counts, init=False)

    def __post_init__(self) -> None:
        self._waiting: deque[Text] = deque()
        self._reading: _Reading | None = None
        self._running: list[_Running] = []
        self._states = slots_of(self.model, self.slots)  # of the running rows, in their order
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, texts: Sequence[Text]) -> None:
        """Have texts written. Raises `Busy` if too many wait, `InputError` for what can never be written."""
        limit = getattr(self.model, "context_limit", None)
        for text in texts:
            if len(text.rows) > self.slots:
                raise InputError(f"n is {len(text.rows)}, and {self.slots} texts are written at once; ask for fewer")
            if limit is not None and len(text.prompt) > limit:
                raise InputError(f"the prompt has {len(text.prompt)} tokens, this model reads {limit}; shorten it")
            if max(text.prompt) >= self.model.config.vocab_size:
                raise InputError(f"the model has {self.model.config.vocab_size} ids, the prompt one of "
                                 f"{max(text.prompt)}; serve it with the tokenizer that it was trained with")
        with self._changed:
            if self._closed:
                raise Busy(STOPPING)
            if len(self._waiting) + len(texts) > self.queue:
                raise Busy(f"{len(self._waiting)} texts are waiting")
            self._waiting.extend(texts)
            self._changed.notify()

    def load(self) -> tuple[int, int]:
        """Rows being written, and texts waiting."""
        return len(self._running), len(self._waiting) + (self._reading is not None)

    def stop(self) -> None:
        """Write no further than the current turn; texts that have not ended are told so."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def close(self) -> None:
        """Stop, and wait for it."""
        self.stop()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting or self._reading or self._running)
                if self._closed:
                    break
            try:
                self._turn()
            except Exception as error:  # the model failed: nothing is known of the state it was given
                self._fail(error)
        self._fail(Busy(STOPPING))

    def _fail(self, error: Exception) -> None:
        with self._changed:
            texts = dict.fromkeys(r.text for r in self._running)
            texts |= {self._reading.text: None} if self._reading else {}
            if self._closed:
                texts |= dict.fromkeys(self._waiting)
                self._waiting.clear()
            self._running, self._states, self._reading = [], slots_of(self.model, self.slots), None
        for text in texts:
            text.tell(Event(0, error=error))

    def _turn(self) -> None:
        self._leave(lambda r: r.text.cancelled)
        left = PIECE
        while left > 0 and self._begin():
            left -= max(1, self._read(left))
        if self._running:
            self._write()

    def _begin(self) -> bool:
        """Have a prompt to read, if one waits and there is room for its rows."""
        if self._reading is not None and self._reading.text.cancelled:
            self._reading = None
        if self._reading is None:
            with self._changed:
                while self._waiting and self._waiting[0].cancelled:
                    self._waiting.popleft()
                if not self._waiting or len(self._running) + len(self._waiting[0].rows) > self.slots:
                    return False
                text = self._waiting.popleft()
            state, text.cached = self.memory.find(text.prompt[:-1])
            self._reading = _Reading(text, state, text.cached)
            self.counts.texts += 1
            self.counts.cached_tokens += text.cached
        return True

    def _read(self, most: int) -> int:
        """Read on in the prompt, all but its last token: that is the first to be read by the batch. Tokens read."""
        now = self._reading
        assert now is not None
        start, last = now.read, len(now.text.prompt) - 1
        end = min(start + most, (start // PIECE + 1) * PIECE, last)
        if start < end:
            tokens = np.array([now.text.prompt[start:end]], np.int64)
            _, now.state = next_logits(self.model, tokens, now.state, 1)
            self.counts.prompt_tokens += end - start
            now.read = end
            if end == last or end % PIECE == 0:
                self.memory.keep(now.text.prompt[:end], now.state.copy())
        if end == last:
            self._join(now)
            self._reading = None
        return end - start

    def _join(self, read: _Reading) -> None:
        text, state = read.text, read.state
        if state is None:
            state = padded_state(self.model, np.zeros(1, np.int64))
        self._states.join(state.rows([0] * len(text.rows)))
        for i, row in enumerate(text.rows):
            row.limit(self.model, len(text.prompt))
            self._running.append(_Running(text, i, text.prompt[-1]))
        self.counts.prompt_tokens += 1

    def _write(self) -> None:
        tokens = np.array([[r.token] for r in self._running], np.int64)
        tops = [r.row.top(self.model) for r in self._running]
        logits = self._states.advance(self.model, tokens, max(tops) if all(tops) else 0)
        self.counts.steps += 1
        self.counts.written_tokens += len(self._running)
        for r, row_logits in zip(self._running, logits, strict=True):
            try:
                piece = r.row.choose(row_logits)
            except InputError as error:
                r.text.cancelled = True
                r.text.tell(Event(r.index, error=error))
                continue
            r.token = r.row.done.ids[-1]
            if piece or r.row.done.finish:
                r.text.tell(Event(r.index, piece, r.row.done.finish))
        self._leave(lambda r: bool(r.row.done.finish) or r.text.cancelled)

    def _leave(self, ends: Callable[[_Running], bool]) -> None:
        """Take rows out of the batch; what a finished one has read is remembered."""
        gone = [i for i, r in enumerate(self._running) if ends(r)]
        order = list(range(len(self._running)))
        for i in reversed(gone):
            if (done := self._running[i]).row.done.finish:
                self.memory.keep([*done.text.prompt, *done.row.done.ids[:-1]], self._states.row(i))
            order[i] = order[-1]
            order.pop()
        if gone:
            self._states.keep(order)
            self._running = [self._running[i] for i in order]
