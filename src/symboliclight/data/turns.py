"""Documents that are conversations: from marked lines to turns, from turns to ids, and what of these are answers."""

from collections.abc import Sequence

import numpy as np

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
    """Which tokens of rows (B, T) count, bool (B, T), as `Answers`; nothing does before a row's first turn or text."""
    found = np.zeros(tokens.shape, bool)
    for row, out in zip(tokens, found, strict=True):
        out[:] = Answers(row, tokenizer).hold(np.arange(len(row)))
    return found


class Answers:
    """Which tokens count: what the assistant says, all after its special piece, up to and with <|end|>; and documents
    without turns, all after their bos.
    """

    def __init__(self, tokens: np.ndarray, tokenizer: Tokenizer) -> None:
        piece, eos, bos = tokenizer.special("assistant"), tokenizer.eos_id, tokenizer.bos_id
        others = [tokenizer.special(role) for role in ("system", "user", "end")]
        self._changes = np.flatnonzero(np.isin(tokens, [piece, *others, bos, eos]))
        marks = tokens[self._changes]
        self.turns = bool((marks == piece).any())  # whether the assistant says anything
        follows = np.append(marks[1:], eos)
        self._counts = (marks == piece) | ((marks == bos) & ((follows == eos) | (follows == bos)))

    def hold(self, positions: np.ndarray) -> np.ndarray:
        """Whether each position counts, bool; False for those below 0."""
        last = np.searchsorted(self._changes, positions, side="left") - 1  # the change before the token itself
        return (last >= 0) & (self._counts[last] if len(self._counts) else False)
