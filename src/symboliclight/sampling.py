"""Next tokens from logits, and text from next tokens. All arithmetic is numpy: any model behind the seam will do.

Legend: B rows, T tokens, V vocabulary. Order of the filters: banned ids, repetition penalty, temperature, top-k,
top-p, min-p.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from symboliclight.errors import InputError
from symboliclight.tokenizer import Tokenizer

GREEDY = 1e-6  # a temperature below this takes the most likely token

Finish = Literal["", "length", "stop", "limit"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises `InputError` for values that mean nothing."""

    temperature: float = 0.8  # 0: always the most likely token
    top_k: int = 0  # keep the k most likely; 0: all
    top_p: float = 1.0  # keep the fewest most likely that hold this much probability
    min_p: float = 0.0  # drop what is less likely than this share of the most likely
    repetition_penalty: float = 1.0  # see `penalise`; 1: none
    repetition_window: int = 64  # tokens looked back upon, prompt included
    adaptive: float = 0.0  # nats, see `adapted_temperature`; 0: off

    def __post_init__(self) -> None:
        rules = {
            "temperature": (0 <= self.temperature < float("inf"), "0 or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p < 1, "in [0, 1)"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "positive"),
            "repetition_window": (self.repetition_window >= 0, "0 or more"),
            "adaptive": (0 <= self.adaptive < float("inf"), "0 (off) or more nats"),
        }
        for name, (good, rule) in rules.items():
            if not good:
                raise InputError(f"--{name.replace('_', '-')} must be {rule}, got {getattr(self, name)}")


def penalise(logits: np.ndarray, recent: Collection[int], penalty: float) -> np.ndarray:
    """Divide positive logits (V,) of recent ids by `penalty`, multiply negative ones by it (arXiv 1909.05858)."""
    ids = np.unique(np.fromiter(recent, np.int64, len(recent)))
    out = logits.copy()
    out[ids] = np.where(out[ids] > 0, out[ids] / penalty, out[ids] * penalty)
    return out


def adapted_temperature(temperature: float, entropy: float, half: float) -> float:
    """T · H / (H + half): T where the model is uncertain, towards 0 (greedy) where it is sure.

    H is the entropy of the next token at temperature 1, `half` the entropy at which the temperature is halved, both
    in nats. half = 0 leaves the temperature as it is.
    """
    return temperature if half == 0 else temperature * entropy / (entropy + half)


def distribution(logits: np.ndarray, how: Sampling, recent: Collection[int] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Candidate ids (N,), ascending, and their probabilities (N,) float64, summing to 1, from logits (V,)."""
    z = logits.astype(np.float64)
    if how.repetition_penalty != 1 and recent:
        z = penalise(z, recent, how.repetition_penalty)
    if not np.isfinite(z.max()):
        raise InputError("the model's logits are not finite; its weights are damaged, use an earlier checkpoint")
    temperature = adapted_temperature(how.temperature, _entropy(z), how.adaptive) if how.adaptive else how.temperature
    if temperature < GREEDY:
        return np.array([z.argmax()]), np.ones(1)
    ids = np.arange(len(z))
    if 0 < how.top_k < len(z):
        ids = np.sort(np.argpartition(-z, how.top_k - 1)[: how.top_k])
    p = _softmax(z[ids] / temperature)
    keep = p >= how.min_p * p.max()
    if how.top_p < 1:
        order = np.argsort(-p, kind="stable")
        keep[order[np.searchsorted(np.cumsum(p[order]), how.top_p) + 1 :]] = False
    keep &= p > 0
    return ids[keep], p[keep] / p[keep].sum()


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def _entropy(z: np.ndarray) -> float:
    """Entropy in nats of softmax(z)."""
    p = _softmax(z)
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


@dataclass
class Completion:
    """What one prompt was continued with."""

    ids: list[int]
    text: str  # without the stop string
    finish: Finish  # "length": max_tokens; "stop": end of text or a stop string; "limit": the model reads no further
    seed: int  # gives this row again, alone or in any batch


class Generation:
    """Continues prompts; iterate to receive (row, text) as it is written, then read `completions`.

    `state` is the model's state when it stopped (of the rows still running then); the last id of a completion has
    not been read yet. Give both to a new `Generation` to go on with the same text.
    """

    def __init__(
        self, model: Any, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], max_tokens: int,
        how: Sampling | None = None, stop: Sequence[str] = (), stop_ids: Collection[int] | None = None, seed: int = 0,
        state: Any = None,
    ) -> None:
        """Row i draws from its own generator with seed + i. `stop_ids`: ids that end a row, by default the eos.

        `state` goes on from an earlier text, with one prompt. Raises `InputError` for an empty prompt or stop string.
        """
        if not prompts or not all(len(p) for p in prompts):
            raise InputError("a prompt is empty; give at least one token, such as the bos")
        if max_tokens < 1:
            raise InputError(f"--max-tokens must be positive, got {max_tokens}")
        if not all(stop):
            raise InputError("--stop must not be empty text")
        if state is not None and len(prompts) != 1:
            raise InputError(f"a state goes on with one prompt, got {len(prompts)}")
        self.state = state
        self._model, self._tokenizer, self._prompts, self._max_tokens = model, tokenizer, prompts, max_tokens
        self._how = how or Sampling()
        self._stop_ids = frozenset([tokenizer.eos_id] if stop_ids is None else stop_ids)
        self._rows = [_Row(tokenizer, p, self._how.repetition_window, stop, seed + i) for i, p in enumerate(prompts)]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        tokens, state, room = self._begin()
        alive = list(range(len(self._rows)))
        while alive:
            logits, state = next_logits(self._model, tokens, state, self._top)
            for i, row_logits in zip(alive, logits, strict=True):
                if text := self._choose(i, row_logits, room[i]):
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

    @property
    def _top(self) -> int:
        """How many of the largest logits decide the next token, masked ids included; 0: all of them."""
        how, t = self._how, self._tokenizer
        wanted = 1 if how.temperature < GREEDY else how.top_k
        if not wanted or how.adaptive or how.repetition_penalty != 1:
            return 0
        return wanted + len((t.pad_id, t.bos_id, t.unk_id)) + max(self._model.config.vocab_size - t.vocab_size, 0)

    def _begin(self) -> tuple[np.ndarray, Any, list[int]]:
        """The prompts, left-padded, (B, T) int64; their state; and how many more tokens each row may take."""
        lengths = np.array([len(p) for p in self._prompts], dtype=np.int64)
        width = int(lengths.max())
        padding = width - lengths
        tokens = np.zeros((len(lengths), width), dtype=np.int64)
        for i, prompt in enumerate(self._prompts):
            tokens[i, padding[i] :] = prompt
        state = padded_state(self._model, padding) if padding.any() else self.state
        limit = getattr(self._model, "context_limit", None)
        if limit is None:
            return tokens, state, [self._max_tokens] * len(lengths)
        before = 0 if self.state is None else int(self.state.position.max())
        return tokens, state, [int(limit - before - n) for n in lengths]

    def _choose(self, i: int, logits: np.ndarray, room: int) -> str:
        """Take the next token of row i; return the text that may now be shown."""
        row, done = self._rows[i], self._rows[i].done
        ids, p = distribution(self._mask(logits), self._how, row.recent)
        at = int(np.searchsorted(np.cumsum(p), row.random.random(), side="right"))
        chosen = int(ids[min(at, len(ids) - 1)])  # the sum may round to less than 1
        done.ids.append(chosen)
        row.recent.append(chosen)
        if chosen in self._stop_ids:
            return row.finish("stop")
        text = row.push(chosen)
        if not done.finish and len(done.ids) >= min(self._max_tokens, room + 1):
            text += row.finish("length" if len(done.ids) == self._max_tokens else "limit")
        return text

    def _mask(self, logits: np.ndarray) -> np.ndarray:
        """Logits without the ids that stand for no text: padding, bos, unknown, unused rows of the vocabulary."""
        t = self._tokenizer
        out = logits.copy()
        out[[i for i in (t.pad_id, t.bos_id, t.unk_id) if i >= 0 and i not in self._stop_ids]] = -np.inf
        out[t.vocab_size :] = -np.inf
        return out


class _Row:
    """One text being written: holds back half characters and what may become a stop string."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], window: int, stop: Sequence[str], seed: int
    ) -> None:
        self.done = Completion([], "", "", seed)
        self.recent = deque(prompt, maxlen=window)
        self.random = np.random.default_rng(seed)
        self._stream, self._stop, self._held = tokenizer.stream(), stop, ""

    def push(self, index: int) -> str:
        """Text that is now certain to be part of the completion; a stop string finishes the row."""
        self._held += self._stream.push(index)
        found = [at for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            self.done.finish = "stop"
            return self._show(min(found))
        lengths = (n for s in self._stop for n in range(len(s) - 1, 0, -1) if self._held.endswith(s[:n]))
        return self._show(len(self._held) - max(lengths, default=0))

    def finish(self, why: Finish) -> str:
        """End the row; what was held back is text after all."""
        self.done.finish = why
        self._held += self._stream.flush()
        return self._show(len(self._held))

    def _show(self, end: int) -> str:
        text, self._held = self._held[:end], self._held[end:]
        self.done.text += text
        return text


def generate(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], max_tokens: int, how: Sampling | None = None,
    stop: Sequence[str] = (), stop_ids: Collection[int] | None = None, seed: int = 0,
    on_text: Callable[[int, str], None] = lambda row, text: None,
) -> list[Completion]:
    """Continue every prompt (ids) by at most `max_tokens`; `on_text` is told (row, text) as it is written.

    The same seed gives the same text; row i of a batch gives what it gives alone with seed + i. See `Generation`.
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
