"""Text from next tokens, for any model behind the seam (distribution.py chooses among logits).

Legend: B rows, T tokens, V vocabulary.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.generate.constraint import Constraint
from symboliclight.generate.distribution import GREEDY, Sampling, distribution
from symboliclight.generate.logprobs import Score, scores
from symboliclight.generate.shift import Shift
from symboliclight.generate.stops import Search, Stops

__all__ = ["Completion", "Generation", "Row", "Sampling", "generate", "next_logits", "padded_state"]

Finish = Literal["", "length", "stop", "limit", "repeat"]
REPEATS = 100, 12  # a text repeats itself when its last 100 tokens hold no more than 12 different ones


@dataclass
class Completion:
    """What one prompt was continued with."""

    ids: list[int]
    text: str  # without the stop string
    finish: Finish  # "length": max_tokens; "stop": end of text or a stop string; "limit": the model reads no further;
    #                 "repeat": it only repeats itself
    seed: int  # gives this row again, alone or in any batch
    scores: list[Score] = field(default_factory=list)  # of each id, where they were asked for


class Generation:
    """Continues prompts; iterate to receive (row, text) as it is written, then read `completions`.

    `state` is the model's state when it stopped (of the rows still running then); the last id of a completion has
    not been read yet. Give both to a new `Generation` to go on with the same text.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], max_tokens: int,
        how: Sampling | None = None, stop: Sequence[str] = (), stop_ids: Collection[int] | None = None,
        seed: int | Sequence[int] = 0, state: Any = None, end_repeats: bool = False,
    ) -> None:
        """Row i draws from its own generator with seed + i, or seed[i] of a list. `stop_ids`: ids that end a row, by
        default the eos. `end_repeats`: end a row that only repeats itself, as a small model may without end.

        `state` goes on from an earlier text, with one prompt. Raises `InputError` for an empty prompt or stop string.
        """
        if not prompts or not all(len(p) for p in prompts):
            raise InputError("a prompt is empty; give at least one token, such as the bos")
        if state is not None and len(prompts) != 1:
            raise InputError(f"a state goes on with one prompt, got {len(prompts)}")
        self.state = state
        self._model, self._prompts, self._end_repeats = model, prompts, end_repeats
        seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
        stops = Stops(stop)
        self._rows = [Row(tokenizer, p, max_tokens, how or Sampling(), stops, stop_ids, own)
                      for p, own in zip(prompts, seeds, strict=True)]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        tokens, state = self._begin()
        alive = list(range(len(self._rows)))
        top = self._rows[0].top(self._model)
        while alive:
            logits, state = next_logits(self._model, tokens, state, top)
            for i, row_logits in zip(alive, logits, strict=True):
                text = self._rows[i].choose(row_logits)
                if self._end_repeats and repeats(self._rows[i].done):
                    text += self._rows[i].finish("repeat")
                if text:
                    yield i, text
            self.state = state
            left = [k for k, i in enumerate(alive) if not self._rows[i].done.finish]
            if 0 < len(left) < len(alive):
                state = state.rows(left)
            alive = [alive[k] for k in left]
            tokens = np.array([[self._rows[i].done.ids[-1]] for i in alive], dtype=np.int64)

    @property
    def completions(self) -> list[Completion]:
        """One a prompt, in their order."""
        return [row.done for row in self._rows]

    def _begin(self) -> tuple[np.ndarray, Any]:
        """The prompts, left-padded, (B, T) int64, and their state."""
        lengths = np.array([len(p) for p in self._prompts], dtype=np.int64)
        width = int(lengths.max())
        padding = width - lengths
        tokens = np.zeros((len(lengths), width), dtype=np.int64)
        for i, prompt in enumerate(self._prompts):
            tokens[i, padding[i] :] = prompt
        before = 0 if self.state is None else int(self.state.position.max())
        for row, length in zip(self._rows, lengths, strict=True):
            row.limit(self._model, before + int(length))
        return tokens, padded_state(self._model, padding) if padding.any() else self.state


class Row:
    """One text being written: draws its tokens, holds back half characters and what may become a stop string."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], max_tokens: int, how: Sampling,
        stop: Sequence[str] | Stops = (), stop_ids: Collection[int] | None = None, seed: int = 0,
        logprobs: int | None = None, shift: Shift | None = None, constraint: Constraint | None = None,
    ) -> None:
        """Arguments as those of `Generation`; with `logprobs`, each token is scored beside so many of the likeliest.
        `constraint` is this row's own: the text ends where it says.

        Raises `InputError` for an empty stop string, or no token to write.
        """
        if max_tokens < 1:
            raise InputError(f"--max-tokens must be positive, got {max_tokens}")
        self.done = Completion([], "", "", seed)
        self._tokenizer, self._how = tokenizer, how
        self._search = Search(stop if isinstance(stop, Stops) else Stops(stop))
        self._stop_ids = frozenset([tokenizer.eos_id] if stop_ids is None else stop_ids)
        self._silent = [i for i in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id)
                        if i >= 0 and i not in self._stop_ids]  # ids that stand for no text
        self._max_tokens = self._room = max_tokens
        self._logprobs, self._shift, self._counts = logprobs, shift, Counter[int]()
        self._constraint = constraint
        self._recent = deque(prompt, maxlen=how.repetition_window)
        self._random = np.random.default_rng(seed)
        self._stream, self._held = tokenizer.stream(), ""

    def limit(self, model: Any, read: int) -> None:
        """Write no more than `model` can read behind `read` tokens."""
        if (most := getattr(model, "context_limit", None)) is not None:
            self._room = min(self._max_tokens, int(most) - read + 1)

    def top(self, model: Any) -> int:
        """How many of the largest logits of `model` decide the next token, masked ids included; 0: all of them."""
        how, wanted = self._how, 1 if self._how.temperature < GREEDY else self._how.top_k
        if (not wanted or how.adaptive or how.repetition_penalty != 1 or self._shift or self._constraint
                or self._logprobs is not None):
            return 0
        return wanted + len(self._silent) + max(model.config.vocab_size - self._tokenizer.vocab_size, 0)

    def choose(self, logits: np.ndarray) -> str:
        """Take the next token from logits (V,), which are changed; return the text that may now be shown."""
        done, given = self.done, logits if self._logprobs is None else logits.copy()
        logits = logits[: self._tokenizer.vocab_size]
        logits[self._silent] = -np.inf
        if self._shift:
            logits = self._shift.apply(logits, self._counts)
        if self._constraint:
            self._constraint.mask(logits, self._stop_ids)
        ids, p = distribution(logits, self._how, self._recent)
        at = int(np.searchsorted(np.cumsum(p), self._random.random(), side="right"))
        chosen = int(ids[min(at, len(ids) - 1)])  # the sum may round to less than 1
        done.ids.append(chosen)
        self._recent.append(chosen)
        self._counts[chosen] += 1
        if self._logprobs is not None:
            done.scores += scores(given[None], [chosen], self._logprobs)
        if chosen in self._stop_ids:
            return self.finish("stop")
        text = self.push(chosen)
        if self._constraint and self._constraint.push(chosen) and not done.finish:
            text += self.finish("stop")
        if not done.finish and len(done.ids) >= self._room:
            text += self.finish("length" if len(done.ids) == self._max_tokens else "limit")
        return text

    def push(self, index: int) -> str:
        """Text that is now certain to be part of the completion; a stop string finishes the row."""
        text = self._stream.push(index)
        self._held += text
        begins = self._search.push(text)
        if begins is not None:
            self.done.finish = "stop"
            return self._show(len(self._held) - begins)
        return self._show(len(self._held) - self._search.held)

    def finish(self, why: Finish) -> str:
        """End the row; what was held back is text after all, but half a character never becomes any."""
        self.done.finish = why
        return self._show(len(self._held))

    def _show(self, end: int) -> str:
        text, self._held = self._held[:end], self._held[end:]
        self.done.text += text
        return text


def repeats(written: Completion) -> bool:
    """Whether a text that has no end yet only repeats itself."""
    count, different = REPEATS
    return not written.finish and len(written.ids) >= count and len(set(written.ids[-count:])) <= different


def generate(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], max_tokens: int, how: Sampling | None = None,
    stop: Sequence[str] = (), stop_ids: Collection[int] | None = None, seed: int | Sequence[int] = 0,
    on_text: Callable[[int, str], None] = lambda row, text: None,
) -> list[Completion]:
    """Continue every prompt (ids) by at most `max_tokens`; `on_text` is told (row, text) as it is written.

    The same seed gives the same text; row i of a batch gives what it gives alone with seed + i (seed[i] of a list).
    """
    run = Generation(model, tokenizer, prompts, max_tokens, how, stop, stop_ids, seed)
    for row, text in run:
        on_text(row, text)
    return run.completions


def padded_state(model: Any, padding: np.ndarray) -> Any:
    """The state of any model before rows with `padding` (B,) absent tokens on their left."""
    if not hasattr(model, "features"):
        return model.initial_state(len(padding), padding)
    from symboliclight.model import step

    return step.padded_state(model, padding)


def next_logits(model: Any, tokens: np.ndarray, state: Any, top: int = 0) -> tuple[np.ndarray, Any]:
    """Logits after the last token (B, V), and the state. A model without `features` takes and gives numpy arrays.

    With `top`, logits that are not among so many largest may be -inf.
    """
    if hasattr(model, "last"):  # the runtime: its head reads only the last row
        return model.last(tokens, state, top)
    if not hasattr(model, "features"):
        logits, state = model(tokens, state)
        return np.asarray(logits)[:, -1], state
    from symboliclight.model.step import last_logits

    return last_logits(model, tokens, state)
