"""Turns of a conversation as ids: contents are text, whatever they hold, and only what stands between is special."""

from symboliclight.core.tokenizer import Tokenizer


def turn(tokenizer: Tokenizer, role: str, content: str, ends: bool = True) -> list[int]:
    """The piece of a role (system, user or assistant), the content as text, and <|end|> unless it goes on.

    Raises `InputError` if the tokenizer has no such pieces.
    """
    ids = [tokenizer.special(role), *tokenizer.encode(content, special=False)]
    return ids + [tokenizer.special("end")] * ends


def reply(tokenizer: Tokenizer) -> list[int]:
    """What the model's turn begins with."""
    return [tokenizer.special("assistant")]
