"""Turns as transformers asks for them: `apply_chat_template`, without a template.

A template pastes contents into a text, where those of special pieces would become turns. Here ids are put together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.core.turns import reply, turn

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def conversation_ids(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], begins_reply: bool, goes_on: bool
                     ) -> list[int]:
    """The bos and each message as a turn; then the begin of a reply, or with `goes_on` no end of the last message.

    Raises `InputError` for messages that are not text of a known role.
    """
    if not messages:
        raise InputError("a conversation needs at least one message")
    if begins_reply and goes_on:
        raise InputError("continue_final_message goes on in a message, add_generation_prompt begins one: give one")
    ids = [tokenizer.bos_id]
    for i, message in enumerate(messages):
        role, content = ROLES.get(message.get("role", "")), message.get("content")
        if role is None or not isinstance(content, str):
            raise InputError(f"a message needs a role of {', '.join(ROLES)} and a content of text, got {message!r:.80}")
        if more := [name for name, value in message.items() if name not in ("role", "content") and value]:
            raise InputError(f"{more[0]} of a message is not offered here; leave it out")
        ids += turn(tokenizer, role, content, ends=not goes_on or i + 1 < len(messages))
    return ids + (reply(tokenizer) if begins_reply else [])
