"""Continuous batching: texts join the batch and leave it between two tokens.

One thread owns the model. A turn of it reads a piece of a prompt, then writes a token of every text that runs, all of
them in one call of the model: they share one reading of its weights. Prompts are read in a round, a piece each, so that
a short one waits for one piece of every other, however long they are. On the runtime a sum has one order whatever the
batch and the pieces, so a text is the same, bit for bit, whoever else is read and written beside it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.generate.logprobs import Score, every_logits, scores
from symboliclight.generate.sampling import Row, next_logits, padded_state
from symboliclight.serve.memory import Memory
from symboliclight.serve.metrics import BETWEEN, FIRST, Counts, Histogram
from symboliclight.serve.slots import slots_of
from symboliclight.serve.spikes import Meter, told
from symboliclight.serve.texts import Busy, Event, Text

PIECE = 256  # tokens of prompts read between two written ones; states at multiples of it are remembered
STOPPING = "the server is stopping; ask again later"


@dataclass(eq=False)
class _Reading:
    """A prompt that is being read, then its rows that have no place yet."""

    text: Text
    state: Any = None  # None: nothing read yet
    read: int = 0  # tokens
    joined: int = 0  # rows that have a place

    @cached_property
    def ids(self) -> np.ndarray:
        """All but the last token: that is the first to be read by the batch."""
        return np.array(self.text.prompt[:-1], np.int32)


@dataclass(eq=False)
class _Running:
    text: Text
    index: int  # of the row in its text
    token: int  # chosen, not read yet
    last: float | None = None  # when a token was written

    @property
    def row(self) -> Row:
        return self.text.rows[self.index]


@dataclass(eq=False)
class Writer:
    """Writes up to `slots` rows at once; up to `queue` texts wait. Close it, or use it as a context."""

    model: Any
    slots: int
    memory: Memory
    queue: int = 256
    counts: Counts = field(default_factory=Counts, init=False)
    first: Histogram = field(default_factory=lambda: Histogram(FIRST), init=False)  # seconds to the first token
    between: Histogram = field(default_factory=lambda: Histogram(BETWEEN), init=False)  # seconds from one to the next

    def __post_init__(self) -> None:
        self._waiting: deque[Text] = deque()
        self._round: deque[_Reading] = deque()  # prompts being read; each has a place for its first row
        self._read_up: deque[_Reading] = deque()  # prompts that were read, with rows that have no place yet
        self._running: list[_Running] = []
        self._states = slots_of(self.model, self.slots)  # of the running rows, in their order
        self.meter = Meter(self.model) if told(self.model) else None
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
            if text.spikes and self.meter is None:
                raise InputError("this server's model does not tell its spikes; leave spikes out")
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
            for text in texts:
                text.submitted = time.monotonic()
            self._waiting.extend(texts)
            self._changed.notify()

    def load(self) -> tuple[int, int]:
        """Rows being written, and texts waiting."""
        return len(self._running), len(self._waiting) + len(self._round) + len(self._read_up)

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
                self._changed.wait_for(lambda: self._closed or self._waiting or self._round or self._read_up
                                       or self._running)
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
            texts |= dict.fromkeys(r.text for r in [*self._round, *self._read_up])
            if self._closed:
                texts |= dict.fromkeys(self._waiting)
                self._waiting.clear()
            self._running, self._states = [], slots_of(self.model, self.slots)
            self._round.clear()
            self._read_up.clear()
        for text in texts:
            text.tell(Event(0, error=error))

    def _turn(self) -> None:
        self._leave(lambda r: r.text.cancelled)
        for prompts in (self._round, self._read_up):
            for gone in [r for r in prompts if r.text.cancelled]:
                prompts.remove(gone)
        while self._read_up and self._join(self._read_up[0]):
            self._read_up.popleft()
        left = PIECE
        while left > 0:
            self._begin()
            if not self._round:
                break
            left -= self._read(self._round[0], left)
        if self._running:
            self._write()

    def _free(self) -> int:
        """Places that no row has, and no prompt that is being read."""
        return self.slots - len(self._running) - len(self._round)

    def _begin(self) -> None:
        """Let prompts into the round that wait, each to a place; rows of prompts that were read come before them."""
        with self._changed:
            if any(text.cancelled for text in self._waiting):  # they take no room from those that wait on
                self._waiting = deque(text for text in self._waiting if not text.cancelled)
            while self._waiting and self._free() > 0 and not self._read_up:
                text = self._waiting.popleft()
                self._round.append(_Reading(text, None if text.begin is None else text.begin.copy()))
                self.counts.texts += 1

    def _read(self, now: _Reading, most: int) -> int:
        """Read on in a prompt, to the next multiple of a piece and at most so many tokens; what it cost in tokens."""
        if now.text.scored is not None:
            return self._score(now, most)
        if now.state is None:
            now.state, now.read = self.memory.find(now.ids)
            self._remembered(now, now.read)
        start, last = now.read, len(now.ids)
        piece = min((start // PIECE + 1) * PIECE, last)
        end = min(start + most, piece)
        known = self.memory.get(now.ids[:piece]) if start < end and now.text.begin is None else None
        if known is not None:
            now.state, now.read, end = known, piece, piece  # another prompt with the same beginning was faster
            self._remembered(now, piece - start)
            most = 0
        elif start < end:
            _, now.state = next_logits(self.model, now.ids[None, start:end].astype(np.int64), now.state, 1)
            self.counts.prompt_tokens += end - start
            now.read = end
            if end == piece and now.text.begin is None:
                self.memory.keep(now.ids[:end], now.state.copy())
        self._go_on(now)
        return min(most, max(1, end - start))

    def _score(self, now: _Reading, most: int) -> int:
        """As `_read`, but with the logits after every token; a state that was remembered has none to tell."""
        text, start = now.text, now.read
        now.read = end = min(start + most, start + PIECE, len(now.ids))
        try:
            if not start:
                text.scores = [Score(text.prompt[0], None)]
            if start < end:
                logits, now.state = every_logits(self.model, now.ids[None, start:end].astype(np.int64), now.state)
                text.scores += scores(logits, text.prompt[start + 1 : end + 1], text.scored or 0)
        except InputError as error:
            self._round.popleft()
            text.tell(Event(0, error=error))
        else:
            self.counts.prompt_tokens += end - start
            self._go_on(now)
        return max(1, end - start)

    def _go_on(self, now: _Reading) -> None:
        """The prompt at the front of the round goes to its end, or has been read."""
        self._round.popleft()
        if now.read < len(now.ids):
            self._round.append(now)
        else:
            self._read_to_the_end(now)

    def _remembered(self, now: _Reading, tokens: int) -> None:
        now.text.cached += tokens
        self.counts.cached_tokens += tokens

    def _read_to_the_end(self, now: _Reading) -> None:
        if now.state is None:
            now.state = padded_state(self.model, np.zeros(1, np.int64))
        if now.text.only_read:
            now.text.kept = now.state
            for i, row in enumerate(now.text.rows):
                now.text.tell(Event(i, row.finish("length"), "length"))
            return
        self.counts.prompt_tokens += 1
        self._read_up.append(now)
        if self._join(now):
            self._read_up.remove(now)

    def _join(self, read: _Reading) -> bool:
        """Give the rows of a prompt that was read the places that are free; whether all have one now."""
        text = read.text
        end = min(len(text.rows), read.joined + max(self._free(), 0))
        if read.joined < end:
            self._states.join(read.state.rows([0] * (end - read.joined)))
        for i in range(read.joined, end):
            text.rows[i].limit(self.model, len(text.prompt))
            self._running.append(_Running(text, i, text.prompt[-1]))
        read.joined = end
        return end == len(text.rows)

    def _write(self) -> None:
        tokens = np.array([[r.token] for r in self._running], np.int64)
        tops = [r.row.top(self.model) for r in self._running]
        top, watched = max(tops) if all(tops) else 0, [i for i, r in enumerate(self._running) if r.text.spikes]
        if watched and self.meter is not None:
            logits, seen = self.meter.advance(self._states, tokens, top, watched)
        else:
            logits, seen = self._states.advance(self.model, tokens, top), {}
        now = time.monotonic()
        self.counts.steps += 1
        self.counts.written_tokens += len(self._running)
        for i, (r, row_logits) in enumerate(zip(self._running, logits, strict=True)):
            try:
                piece = r.row.choose(row_logits)
            except InputError as error:
                r.text.cancelled = True
                r.text.tell(Event(r.index, error=error))
                continue
            r.token = r.row.done.ids[-1]
            (self.first if r.last is None else self.between).observe(now - (r.last or r.text.submitted))
            r.last = now
            if i in seen:
                seen[i] |= {"token": len(r.row.done.ids) - 1, "id": r.token}
            if r.row.done.finish or ((piece or i in seen) and not r.text.quiet):
                r.text.tell(Event(r.index, piece, r.row.done.finish, spikes=seen.get(i)))
        self._leave(lambda r: bool(r.row.done.finish) or r.text.cancelled)

    def _leave(self, ends: Callable[[_Running], bool]) -> None:
        """Take rows out of the batch; what a finished one has read is remembered."""
        gone = [i for i, r in enumerate(self._running) if ends(r)]
        order = list(range(len(self._running)))
        for i in reversed(gone):
            if (done := self._running[i]).row.done.finish and done.text.begin is None:
                self.memory.keep([*done.text.prompt, *done.row.done.ids[:-1]], self._states.row(i))
            order[i] = order[-1]
            order.pop()
        if gone:
            self._states.keep(order)
            self._running = [self._running[i] for i in order]
