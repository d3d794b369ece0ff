"""Turns of a conversation as ids: contents are text, whatever they hold, and only what stands between is special."""

from symboliclight.core.tokenizer import Tokenizer


def turn(tokenizer: Tokenizer, role: str, content: str, ends: bool = True) -> list[int]:
    """The piece of a role (system, user or assistant), the content as text, and <|end|> unless it goes on.

    Raises `InputError` if the tokenizer has no such pieces.
    """
    ids = [tokenizer.special(role), *tokenizer.encode(content, special=False)]
    return ids + [tokenizer.special("end")] * ends


def ends(tokenizer: Tokenizer) -> frozenset[int]:
    """What ends a text of a model that learned turns: the end of the text, of its turn, or a turn of the user."""
    return frozenset((tokenizer.eos_id, tokenizer.special("end"), tokenizer.special("user")))


def reply(tokenizer: Tokenizer) -> list[int]:
    """What the model's turn begins with."""
    return [tokenizer.special("assistant")]
