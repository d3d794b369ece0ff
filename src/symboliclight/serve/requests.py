"""Bodies of requests and answers, in the shape of OpenAI's completion API.

`top_k`, `min_p`, `repetition_penalty`, `repetition_window`, `adaptive`, `ignore_eos` and `spikes` come on top of it;
which fields there are, and what is refused, stands in fields.py.
"""

import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.core.turns import reply, turn
from symboliclight.generate.sampling import Completion, Row, Sampling
from symboliclight.serve.fields import MESSAGE, check_off, heard

MOST, LONGEST = 128, 1_000_000  # texts one request may ask for, and tokens of each
ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class Defaults:
    """What a request gets that does not say otherwise, and how this server reads conversations."""

    sampling: Sampling
    max_tokens: int
    stop: Sequence[str]
    turns: bool  # mark turns with special pieces, for a model that was trained with them


@dataclass(frozen=True)
class Request:
    """What one request asks for."""

    prompts: list[list[int]]
    n: int  # texts for each prompt
    sampling: Sampling
    max_tokens: int
    stop: Sequence[str]
    stop_ids: Collection[int]
    seed: int  # text i of all draws from its own generator with seed + i
    stream: bool
    usage: bool  # end a stream with the tokens that were used
    chat: bool
    spikes: bool = False  # tell, beside a stream, who spiked for each token

    def rows(self, tokenizer: Tokenizer, prompt: int) -> list[Row]:
        """What writes the texts of one prompt."""
        return [Row(tokenizer, self.prompts[prompt], self.max_tokens, self.sampling, self.stop, self.stop_ids,
                    self.seed + prompt * self.n + i) for i in range(self.n)]


def parse(body: Any, chat: bool, tokenizer: Tokenizer, defaults: Defaults) -> Request:
    """A request from its JSON. Raises `InputError` that names the field."""
    if not isinstance(body, dict):
        raise InputError("the body must be a JSON object")
    body = heard(body, chat)
    n, options = _integer(body, "n", 1), _field(body, "stream_options", {}, dict)
    if chat:
        prompts, ends = [conversation(body.get("messages"), defaults.turns, tokenizer)], defaults.turns
    else:
        prompts, ends = _prompts(body.get("prompt"), tokenizer), False
    if not 1 <= n * len(prompts) <= MOST:
        raise InputError(f"n must be at least 1, and n times the prompts at most {MOST}, got {n} times {len(prompts)}")
    stop = _field(body, "stop", defaults.stop, str, list, tuple)
    stop = [stop] if isinstance(stop, str) else list(stop)
    if not all(isinstance(s, str) and s for s in stop):
        raise InputError("stop must be text, or a list of texts, none of them empty")
    limit = _integer(body, "max_tokens", defaults.max_tokens)
    limit = _integer(body, "max_completion_tokens", limit)
    if not 1 <= limit <= LONGEST:
        raise InputError(f"max_tokens must be positive and at most {LONGEST}, got {limit}")
    seed = _integer(body, "seed", secrets.randbits(32))
    if seed < 0:
        raise InputError(f"seed must not be negative, got {seed}")
    stop_ids = {tokenizer.eos_id} | ({tokenizer.special("end"), tokenizer.special("user")} if ends else set())
    stop_ids = set() if _field(body, "ignore_eos", False, bool) else stop_ids
    stream, spikes = (_field(body, name, False, bool) for name in ("stream", "spikes"))
    if spikes and not stream:
        raise InputError("spikes come beside a stream: set stream to true, or leave spikes out")
    return Request(prompts, n, _sampling(body, defaults.sampling), limit, stop, stop_ids, seed,
                   stream, _field(options, "include_usage", False, bool), chat, spikes)


def conversation(messages: Any, turns: bool, tokenizer: Tokenizer) -> list[int]:
    """The ids that a reply to `messages` continues, as `symboliclight chat` reads them.

    With `turns`, each message stands behind the special piece of its role and before <|end|>. Without, the model only
    continues text: a message that is not the assistant's begins a new line. Contents are text, whatever they hold.
    """
    if not isinstance(messages, list) or not messages:
        raise InputError("messages must be a list with at least one message")
    ids, text = [tokenizer.bos_id], ""
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise InputError(f"each message needs a role of {', '.join(ROLES)}, got {role!r:.60}")
        said = _content(message)
        if turns:
            ids += turn(tokenizer, "system" if role == "developer" else role, said)
        else:
            text += "\n" * (bool(text) and role != "assistant") + said
    if not turns and not text:
        raise InputError("messages hold no text")
    return ids + (reply(tokenizer) if turns else tokenizer.encode(text, special=False))


def _content(message: Mapping[str, Any]) -> str:
    """Text of a message: a string, or parts of type text."""
    for name, value in message.items():
        if name not in ("role", "content"):
            check_off(name, value, MESSAGE, "messages.")
    content = message.get("content")
    if isinstance(content, list) and all(map(_is_text, content)):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise InputError("the content of a message must be text; this model reads nothing else")
    return content


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def _prompts(prompt: Any, tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of each prompt: text, ids, or a list of either."""
    many = prompt if isinstance(prompt, list) and not _are_ids(prompt) else [prompt]
    found = []
    for one in many:
        if isinstance(one, str):
            found.append(tokenizer.encode(one, bos=True))
        elif _are_ids(one):
            if not all(0 <= i < tokenizer.vocab_size for i in one):
                raise InputError(f"ids must be in 0..{tokenizer.vocab_size - 1}; use this model's tokenizer")
            found.append(list(one))
        else:
            raise InputError("prompt must be text, a list of ids, or a list of either, none of them empty")
    if not found:
        raise InputError("prompt must hold at least one text")
    return found


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int for i in value)


def _sampling(body: Mapping[str, Any], defaults: Sampling) -> Sampling:
    chosen = {}
    for f in fields(Sampling):
        default = getattr(defaults, f.name)
        chosen[f.name] = _integer(body, f.name, default) if f.type is int else _field(body, f.name, default, int, float)
    try:
        return replace(defaults, **chosen)
    except InputError as error:  # it names the option of the command line
        name, _, rest = str(error).partition(" ")
        raise InputError(f"{name.removeprefix('--').replace('-', '_')} {rest}") from error


def _field(body: Mapping[str, Any], name: str, default: Any, *types: type) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in types:
        raise InputError(f"{name} must be {' or '.join(WORDS[t] for t in types if t in WORDS)}, got {value!r:.60}")
    return value


def _integer(body: Mapping[str, Any], name: str, default: int) -> int:
    value: int = _field(body, name, default, int)
    return value


WORDS = {int: "a whole number", float: "a number", str: "text", list: "a list", bool: "true or false",
         dict: "an object"}


class Answer:
    """Builds the bodies that answer one request."""

    def __init__(self, request: Request, model: str) -> None:
        chat = request.chat
        self._chat, self._seed = chat, request.seed
        self._head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
                      "object": "chat.completion" if chat else "text_completion",
                      "created": int(time.time()), "model": model}

    def whole(self, texts: Sequence[Completion], usage: Mapping[str, Any]) -> dict[str, Any]:
        """The answer at once: one choice a text."""
        return self._head | {"choices": [self._choice(i, t.text, t.finish) for i, t in enumerate(texts)],
                             "usage": usage, "seed": self._seed}

    def pieces(self, index: int, text: str, finish: str, first: bool) -> Iterator[dict[str, Any]]:
        """Chunks of a stream for what came of one text."""
        head = self._head | ({"object": "chat.completion.chunk"} if self._chat else {})
        if not self._chat:
            yield head | {"choices": [self._choice(index, text, finish)]}
            return
        deltas: list[dict[str, str]] = [{"role": "assistant", "content": text}] if first else []
        deltas += [{"content": text}] if text and not first else []
        for delta in deltas:
            yield head | {"choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]}
        if finish:
            end = {"index": index, "delta": {}, "logprobs": None, "finish_reason": _reason(finish)}
            yield head | {"choices": [end]}

    def last(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """The chunk with the tokens that were used."""
        return self._head | ({"object": "chat.completion.chunk"} if self._chat else {}) | {
            "choices": [], "usage": usage, "seed": self._seed}

    def _choice(self, index: int, text: str, finish: str) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return {"index": index, **said, "logprobs": None, "finish_reason": _reason(finish)}


def usage(prompt: int, cached: int, written: int) -> dict[str, Any]:
    """Tokens of a request: read, of them remembered from before, and written."""
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": cached}}


def _reason(finish: str) -> str | None:
    return {"": None, "stop": "stop"}.get(finish, "length")
