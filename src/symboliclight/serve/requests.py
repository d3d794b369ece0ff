"""Bodies of requests, in the shape of OpenAI's completion API; those of answers are in answers.py.

`top_k`, `min_p`, `repetition_penalty`, `repetition_window`, `adaptive`, `ignore_eos` and `spikes` come on top of it;
which fields there are, and what is refused, stands in fields.py.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.core.turns import ends, reply, turn
from symboliclight.generate.constraint import Kind, grammars
from symboliclight.generate.sampling import Row, Sampling
from symboliclight.generate.shift import Shift
from symboliclight.generate.stops import Stops
from symboliclight.serve.fields import MESSAGE, check_off, heard
from symboliclight.serve.forms import form_of

MOST, LONGEST = 128, 1_000_000  # texts one request may ask for, and tokens of each
LIKELIEST = 20  # tokens that may be asked for beside each
ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class Defaults:
    """What a request gets that does not say otherwise, and how this server reads conversations."""

    sampling: Sampling
    max_tokens: int
    stop: Sequence[str]
    turns: bool  # mark turns with special pieces, for a model that was trained with them
    max_prompt: int | None = None  # tokens of a prompt


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
    logprobs: int | None  # score each token, beside so many of the likeliest
    shift: Shift
    echo: bool  # the prompt is part of the answer, and scored with it
    spikes: bool = False  # tell, beside a stream, who spiked for each token
    form: tuple[Kind, str] | None = None  # what each text must match
    state: str | None = None  # of this name the prompts are read behind

    def rows(self, tokenizer: Tokenizer, prompt: int) -> list[Row]:
        """What writes the texts of one prompt."""
        stops = Stops(self.stop)
        return [Row(tokenizer, self.prompts[prompt], max(1, self.max_tokens), self.sampling, stops, self.stop_ids,
                    self.seed + prompt * self.n + i, self.logprobs, self.shift,
                    grammars(tokenizer).constraint(*self.form) if self.form else None) for i in range(self.n)]


def parse(body: Any, chat: bool, tokenizer: Tokenizer, defaults: Defaults) -> Request:
    """A request from its JSON. Raises `InputError` that names the field."""
    if not isinstance(body, dict):
        raise InputError("the body must be a JSON object")
    body = heard(body, chat)
    n, options = _integer(body, "n", 1), _field(body, "stream_options", {}, dict)
    state: str | None = _field(body, "state", None, str)
    prompts = _to_continue(body, chat, state is not None, tokenizer, defaults)
    check_length(prompts, defaults.max_prompt)
    if not 1 <= n * len(prompts) <= MOST:
        raise InputError(f"n must be at least 1, and n times the prompts at most {MOST}, got {n} times {len(prompts)}")
    stop = _field(body, "stop", defaults.stop, str, list, tuple)
    stop = [stop] if isinstance(stop, str) else list(stop)
    if not all(isinstance(s, str) and s for s in stop):
        raise InputError("stop must be text, or a list of texts, none of them empty")
    limit = _integer(body, "max_tokens", defaults.max_tokens)
    limit = _integer(body, "max_completion_tokens", limit)
    echo = _field(body, "echo", False, bool)
    if not (not echo) <= limit <= LONGEST:
        raise InputError(f"max_tokens must be positive, or 0 with echo, and at most {LONGEST}, got {limit}")
    seed = _integer(body, "seed", secrets.randbits(32))
    if seed < 0:
        raise InputError(f"seed must not be negative, got {seed}")
    stop_ids = ends(tokenizer) if defaults.turns else frozenset({tokenizer.eos_id})
    stop_ids = frozenset() if _field(body, "ignore_eos", False, bool) else stop_ids
    stream, spikes = (_field(body, name, False, bool) for name in ("stream", "spikes"))
    if spikes and not stream:
        raise InputError("spikes come beside a stream: set stream to true, or leave spikes out")
    form = form_of(body)
    if form is not None:
        grammars(tokenizer).constraint(*form)  # what is wrong with it is said now
    return Request(prompts, n, _sampling(body, defaults.sampling), limit, stop, stop_ids, seed,
                   stream, _field(options, "include_usage", False, bool), chat, _logprobs(body, chat),
                   _shift(body, tokenizer), echo, spikes, form, state)


def _to_continue(body: Mapping[str, Any], chat: bool, begun: bool, tokenizer: Tokenizer, defaults: Defaults
                 ) -> list[list[int]]:
    """Ids of each prompt; behind a state a completion may go on without any."""
    if chat:
        return [conversation(body.get("messages"), defaults.turns, tokenizer, begun)]
    prompt = body.get("prompt")
    return [[]] if begun and prompt in (None, "", []) else prompts_of(prompt, tokenizer, begun=begun)


def to_read(body: Any, tokenizer: Tokenizer, defaults: Defaults) -> tuple[Request, Any]:
    """What `POST /v1/states` asks for: a prompt to be read, to its end and no further, and the name of its state."""
    if not isinstance(body, dict):
        raise InputError("the body must be a JSON object")
    unknown = [key for key in body if key not in ("name", "model", "prompt", "messages", "state")]
    if unknown:
        raise InputError(f"{unknown[0]:.60} is not known here; leave it out")
    prompt, messages, state = body.get("prompt"), body.get("messages"), body.get("state")
    if prompt is not None and messages is not None:
        raise InputError("prompt and messages were both given; leave one out")
    if messages is not None:
        prompt = conversation(messages, defaults.turns, tokenizer, state is not None, answered=True)
    request = parse({"prompt": prompt, "state": state, "echo": True, "max_tokens": 0}, False, tokenizer, defaults)
    if len(request.prompts) != 1:
        raise InputError("a state has read one prompt; give one")
    return request, body.get("name")


def _logprobs(body: Mapping[str, Any], chat: bool) -> int | None:
    """How many of the likeliest tokens are told beside each, which is scored; None: it is not."""
    if chat:
        name, most = "top_logprobs", _integer(body, "top_logprobs", 0)
        asked = _field(body, "logprobs", False, bool)
        if most and not asked:
            raise InputError("top_logprobs is of use with logprobs only; add logprobs: true")
    else:
        name, asked = "logprobs", body.get("logprobs", False) is not False
        most = _integer(body, "logprobs", 0) if asked else 0
    if not 0 <= most <= LIKELIEST:
        raise InputError(f"{name} must be in 0..{LIKELIEST}, got {most}")
    return most if asked else None


def check_length(prompts: list[list[int]], most: int | None) -> None:
    """Raise `InputError` for a prompt of more than `most` tokens."""
    longest = max(map(len, prompts))
    if most is not None and longest > most:
        raise InputError(f"the prompt has {longest} tokens, this server reads {most} at most; shorten it")


def conversation(messages: Any, turns: bool, tokenizer: Tokenizer, begun: bool = False, answered: bool = False
                 ) -> list[int]:
    """The ids that a reply to `messages` continues, as `symboliclight chat` reads them; with `begun` behind others that
    were read, with `answered` without what a reply begins with.

    With `turns`, each message stands behind the special piece of its role and before <|end|>. Without, the model only
    continues text: a message that is not the assistant's begins a new line. Contents are text, whatever they hold.
    """
    if not isinstance(messages, list) or not messages:
        raise InputError("messages must be a list with at least one message")
    ids, text = [] if begun else [tokenizer.bos_id], ""
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise InputError(f"each message needs a role of {', '.join(ROLES)}, got {role!r:.60}")
        said = _content(message)
        if turns:
            ids += turn(tokenizer, "system" if role == "developer" else role, said)
        else:
            text += "\n" * (bool(text or begun) and role != "assistant") + said
    if not turns and not text:
        raise InputError("messages hold no text")
    if not turns:
        return ids + tokenizer.encode(text, special=False)
    return ids if answered else ids + reply(tokenizer)


def _content(message: Mapping[str, Any]) -> str:
    """Text of a message: a string, or parts of type text."""
    for name, value in message.items():
        if name not in ("role", "content"):
            check_off(name, value, MESSAGE, "messages.")
    content = message.get("content")
    if content is None and message["role"] == "assistant":  # one that called a tool
        return ""
    if isinstance(content, list) and all(map(_is_text, content)):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise InputError("the content of a message must be text; this model reads nothing else")
    return content


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def prompts_of(prompt: Any, tokenizer: Tokenizer, name: str = "prompt", begun: bool = False) -> list[list[int]]:
    """Ids of each prompt in field `name`: text, ids, or a list of either; with `begun` text goes on without a bos."""
    many = prompt if isinstance(prompt, list) and not _are_ids(prompt) else [prompt]
    found = []
    for one in many:
        if isinstance(one, str):
            found.append(tokenizer.encode(one, bos=not begun))
        elif _are_ids(one):
            if not all(0 <= i < tokenizer.vocab_size for i in one):
                raise InputError(f"ids must be in 0..{tokenizer.vocab_size - 1}; use this model's tokenizer")
            found.append(list(one))
        else:
            raise InputError(f"{name} must be text, a list of ids, or a list of either, none of them empty")
    if not found:
        raise InputError(f"{name} must hold at least one text")
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


def _shift(body: Mapping[str, Any], tokenizer: Tokenizer) -> Shift:
    bias = body.get("logit_bias") or {}
    if not isinstance(bias, dict) or not all(type(v) in (int, float) for v in bias.values()):
        raise InputError("logit_bias must be an object of ids and numbers, such as {\"310\": -100}")
    for index in bias:
        if not (index.isascii() and index.isdigit() and len(index) < 10 and int(index) < tokenizer.vocab_size):
            raise InputError(f"logit_bias has ids in 0..{tokenizer.vocab_size - 1}, got {index:.60}")
    numbers = {name: _field(body, name, 0, int, float) for name in ("frequency_penalty", "presence_penalty")}
    return Shift(**numbers, logit_bias=tuple({int(index): value for index, value in bias.items()}.items()))


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
