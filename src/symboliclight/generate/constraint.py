"""Text that must match: a JSON schema, a regular expression, a choice or a grammar, by llguidance.

A grammar is compiled once and kept; what each text may go on with is a mask over the vocabulary, from the bytes of the
pieces, so that a character of several byte pieces is whole or not written. Special pieces are never allowed.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer

Kind = Literal["json", "regex", "choice", "grammar"]
KEPT = 64  # compiled grammars of a tokenizer, those used longest ago go first
SPACES = r"[ \n]?"  # between the parts of JSON: a small model would write nothing else where it may


class Grammars:
    """Compiled grammars of one tokenizer. Any thread may ask."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises `InputError` if llguidance is not installed."""
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError as error:
            raise InputError("text by a grammar needs llguidance: pip install 'symboliclight[grammar]'") from error
        self.tokenizer = tokenizer
        self._vocabulary = LLTokenizer(TokenizerWrapper(_Pieces(tokenizer)), n_vocab=tokenizer.vocab_size,
                                       eos_token=[tokenizer.eos_id])
        self._compiled: OrderedDict[tuple[Kind, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self, kind: Kind, text: str) -> "Constraint":
        """What holds one text to a JSON schema, a regular expression, a JSON list of choices, or a grammar: Lark's or,
        where it holds `::=`, llama.cpp's GBNF.

        Raises `InputError` that says what is wrong with it, or what llguidance does not do.
        """
        key = kind, text
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self._compile(kind, text)
            self._compiled.move_to_end(key)
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return Constraint(self._compiled[key].deep_copy(), self.tokenizer.vocab_size, self.tokenizer.eos_id)

    def _compile(self, kind: Kind, text: str) -> Any:
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(self._vocabulary, _grammar(kind, text), log_level=0)
        except Exception as error:  # of a kind for each form, and what a hostile text makes of them
            raise InputError(f"{kind}: {_line(str(error))}") from error
        if matcher.is_error():
            raise InputError(f"{kind}: {_line(matcher.get_error())}")
        return matcher


class Constraint:
    """One text on its way through a grammar."""

    def __init__(self, matcher: Any, vocab_size: int, eos_id: int) -> None:
        self._matcher, self._size, self._eos_id = matcher, vocab_size, eos_id

    def mask(self, logits: np.ndarray, stop_ids: Collection[int]) -> None:
        """Set logits (V,) to -inf for what may not come next; `stop_ids` may once the text may end.

        Raises `InputError` if the grammar has become too large to go on with.
        """
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(packed, bitorder="little")[: self._size].astype(bool)
        allowed[self._eos_id] = False
        if self._matcher.is_accepting():
            allowed[list(stop_ids)] = True
        logits[~allowed] = -np.inf

    def push(self, token: int) -> bool:
        """Go on with a token that was allowed; whether the text has ended, since nothing can follow."""
        self._matcher.consume_token(token)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InputError(f"the grammar cannot be followed further: {_line(self._matcher.get_error())}")


@lru_cache(maxsize=8)
def grammars(tokenizer: Tokenizer) -> Grammars:
    """The one `Grammars` of a tokenizer, made when first asked for."""
    return Grammars(tokenizer)


class _Pieces:
    """A tokenizer as llguidance reads it: bytes of each id, those of special ones behind a byte that is no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
        marks = {tokenizer.special(name) for name in tokenizer.markers}
        silent = {i for i, (_, data) in enumerate(pieces) if not data or i == tokenizer.unk_id} | marks
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, max(tokenizer.bos_id, 0)
        self.special_token_ids = sorted(silent)
        self.tokens = [b"\xff" + name.encode() if i in silent else data for i, (name, data) in enumerate(pieces)]
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode("utf-8", "replace"), special=False)


def _grammar(kind: Kind, text: str) -> str:
    """The grammar in llguidance's own form."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if kind == "json":
        return str(LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": SPACES}))
    if kind == "regex":
        return str(LLMatcher.grammar_from_regex(text))
    if kind == "choice":
        return str(LLMatcher.grammar_from_regex("|".join(re.escape(one) for one in json.loads(text))))
    return str(LLMatcher.grammar_from_lark(gbnf_to_lark(text) if "::=" in text else text))


def _line(message: str) -> str:
    return " ".join(message.split())[:300]
