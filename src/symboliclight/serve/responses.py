"""`/v1/responses`, the text-only part of OpenAI's newer API: its requests as chats, and their answers in its shape.

Nothing is stored: `previous_response_id`, `conversation` and everything with tools is refused by name.
"""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.serve.fields import check_off
from symboliclight.serve.requests import Request
from symboliclight.serve.texts import Text

SAME = ("temperature", "top_p", "stream", "seed", "top_k", "min_p", "repetition_penalty", "repetition_window",
        "ignore_eos", "stop")  # heard as in a chat
IDLE = ("model", "metadata", "store", "user", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options",
        "parallel_tool_calls", "prompt_cache_retention")
OFF: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("none", "auto"), "include": ([],), "truncation": ("disabled",),
    "background": (False,), "reasoning": ({},), "top_logprobs": (0,), "previous_response_id": (), "conversation": (),
    "max_tool_calls": (), "prompt": ()}
PARTS = ("input_text", "output_text", "text")


def to_chat(body: Any) -> dict[str, Any]:
    """The chat that a request asks for. Raises `InputError` that names a field which is wrong or not offered."""
    if not isinstance(body, dict):
        raise InputError("the body must be a JSON object")
    chat: dict[str, Any] = {"messages": []}
    if isinstance(instructions := body.get("instructions"), str):
        chat["messages"].append({"role": "system", "content": instructions})
    elif instructions is not None:
        raise InputError(f"instructions must be text, got {instructions!r:.60}")
    chat["messages"] += _messages(body.get("input"))
    for name, value in body.items():
        if value is None or name in ("input", "instructions", *IDLE):
            continue
        if name in SAME:
            chat[name] = value
        elif name == "max_output_tokens":
            chat["max_tokens"] = value
        elif name == "text":
            chat |= _format(value)
        else:
            check_off(name, value, OFF, "")
    return chat


def _messages(given: Any) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise InputError("input must be text, or a list of messages, not empty")
    messages = []
    for item in given:
        if not isinstance(item, dict) or item.get("type", "message") != "message":
            kind = item.get("type") if isinstance(item, dict) else item
            raise InputError(f"input items must be messages, got {kind!r:.60}; this model reads nothing else")
        content = item.get("content")
        if isinstance(content, list):
            if not all(isinstance(p, dict) and p.get("type") in PARTS and isinstance(p.get("text"), str)
                       for p in content):
                raise InputError("the content of a message must be text; this model reads nothing else")
            content = "".join(part["text"] for part in content)
        messages.append({"role": item.get("role"), "content": content})
    return messages


def _format(text: Any) -> dict[str, Any]:
    """`text.format`, whose json_schema has its schema one level higher than in a chat."""
    if not isinstance(text, dict):
        raise InputError(f"text must be an object, got {text!r:.60}")
    for name, value in text.items():
        if name != "format":
            check_off(name, value, {"verbosity": ("medium",)}, "text.")
    return {} if text.get("format") is None else {"response_format": text["format"]}


class ResponseAnswer:
    """Builds what answers one request, whole and as events. Same methods as `answers.Answer`."""

    def __init__(self, request: Request, model: str, tokenizer: Tokenizer, texts: Sequence[Text]) -> None:
        self._request, self._done, self._said = request, texts[0].rows[0].done, ""
        self._item, self._number, self._begun = f"msg_{secrets.token_hex(12)}", 0, False
        how = request.sampling
        self._head = {
            "id": f"resp_{secrets.token_hex(12)}", "object": "response", "created_at": int(time.time()), "error": None,
            "instructions": None, "max_output_tokens": request.max_tokens, "metadata": {}, "model": model,
            "parallel_tool_calls": False, "previous_response_id": None, "reasoning": {"effort": None, "summary": None},
            "store": False, "temperature": how.temperature, "text": {"format": {"type": "text"}}, "tool_choice": "none",
            "tools": [], "top_p": how.top_p, "truncation": "disabled", "user": None, "seed": request.seed}

    def whole(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """The answer at once."""
        cut = self._done.finish != "stop"
        read, written = usage["prompt_tokens"], usage["completion_tokens"]
        return self._head | {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._message(self._done.text, "incomplete" if cut else "completed")],
            "usage": {"input_tokens": read, "input_tokens_details": usage["prompt_tokens_details"],
                      "output_tokens": written, "output_tokens_details": {"reasoning_tokens": 0},
                      "total_tokens": read + written}}

    def pieces(self, index: int, piece: str, finish: str) -> Iterator[dict[str, Any]]:
        """Events for what came of the text."""
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        if not self._begun:
            self._begun = True
            running = {"response": self._head | {"status": "in_progress", "incomplete_details": None, "output": [],
                                                 "usage": None}}
            yield self._event("response.created", **running)
            yield self._event("response.in_progress", **running)
            yield self._event("response.output_item.added", output_index=0,
                              item=self._message("", "in_progress") | {"content": []})
            yield self._event("response.content_part.added", **place, part=_part(""))
        if piece:
            self._said += piece
            yield self._event("response.output_text.delta", **place, delta=piece, logprobs=[])
        if finish:
            said, status = self._said, "completed" if finish == "stop" else "incomplete"
            yield self._event("response.output_text.done", **place, text=said, logprobs=[])
            yield self._event("response.content_part.done", **place, part=_part(said))
            yield self._event("response.output_item.done", output_index=0, item=self._message(said, status))

    def last(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """The event that ends a stream."""
        answer = self.whole(usage)
        return self._event(f"response.{answer['status']}", response=answer)

    def _event(self, kind: str, **values: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **values}

    def _message(self, text: str, status: str) -> dict[str, Any]:
        return {"type": "message", "id": self._item, "status": status, "role": "assistant", "content": [_part(text)]}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
