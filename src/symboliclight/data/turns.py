"""Documents that are conversations: from marked lines to turns, from turns to ids, and what of these are answers."""

from collections.abc import Sequence

import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.core.turns import turn

Turns = list[tuple[str, str]]  # role ("user" or "assistant") and content
Document = str | Turns


def read_turns(text: str, marks: Sequence[tuple[str, str]]) -> Turns | None:
    """Turns of a text whose lines begin with marks such as `Q:` and `A:`; None if no pair of marks is in it.

    Of the pairs (user, assistant) the first with both marks in the text counts. A line without a mark goes on with the
    turn; lines before the first mark, such as a passage that is asked about, begin the user's. Neighbours of one role
    are one turn.
    """
    lines = text.split("\n")
    pair = next((pair for pair in marks if all(any(line.startswith(mark) for line in lines) for mark in pair)), None)
    if pair is None:
        return None
    turns: list[tuple[str, list[str]]] = []
    for line in lines:
        role, content = _marked(line, pair)
        if role is None or (turns and turns[-1][0] == role):
            if not turns:
                turns.append(("user", []))
            turns[-1][1].append(content)
        else:
            turns.append((role, [content]))
    return [(role, "\n".join(contents).strip()) for role, contents in turns]


def _marked(line: str, pair: tuple[str, str]) -> tuple[str | None, str]:
    for role, mark in zip(("user", "assistant"), pair, strict=True):
        if line.startswith(mark):
            return role, line[len(mark):].strip()
    return None, line


def plain_text(document: Document) -> str:
    """What was said, without who said it."""
    return document if isinstance(document, str) else "\n".join(content for _, content in document)


def encode_document(tokenizer: Tokenizer, document: Document, special: bool = True) -> list[int]:
    """bos, ids, eos. What stands in turns is always text, whatever it holds; elsewhere `special` says whether the
    text of a special piece gives its id."""
    if isinstance(document, str):
        return tokenizer.encode(document, bos=True, eos=True, special=special)
    ids = (i for role, content in document for i in turn(tokenizer, role, content))
    return [tokenizer.bos_id, *ids, tokenizer.eos_id]


def said(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Which tokens of rows (B, T) the assistant says, bool (B, T), as `Answers`; nobody before the first turn."""
    piece, others = tokenizer.special("assistant"), [tokenizer.special(role) for role in ("system", "user", "end")]
    changes = np.isin(tokens, [piece, *others, tokenizer.bos_id, tokenizer.eos_id])
    last = np.maximum.accumulate(np.where(changes, np.arange(tokens.shape[1]), -1), 1)
    before = np.concatenate([np.full((len(tokens), 1), -1), last[:, :-1]], 1)  # the change before the token itself
    return (before >= 0) & (np.take_along_axis(tokens, before, 1) == piece)


class Answers:
    """Which tokens of a domain are said by the assistant: all after its special piece, up to and with <|end|>."""

    def __init__(self, tokens: np.ndarray, tokenizer: Tokenizer, name: str) -> None:
        """Raises `InputError` if there is none."""
        self._piece = tokenizer.special("assistant")
        others = [tokenizer.special(role) for role in ("system", "user", "end")]
        self._changes = np.flatnonzero(np.isin(tokens, [self._piece, *others, tokenizer.bos_id, tokenizer.eos_id]))
        self._answers = tokens[self._changes] == self._piece
        if not self._answers.any():
            raise InputError(f"domain {name!r} holds no turn of the assistant, so nothing of it would be learnt with "
                             'data.loss = "answers"; leave it out of data.weights')

    def hold(self, positions: np.ndarray) -> np.ndarray:
        """Whether each position lies in an answer, bool; False for those below 0."""
        last = np.searchsorted(self._changes, positions, side="left") - 1  # the change before the token itself
        return (last >= 0) & self._answers[last]
