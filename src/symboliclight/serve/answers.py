"""Bodies of answers, whole and in the chunks of a stream, in the shape of OpenAI's completion API.

A token is told as its text; one that is not valid UTF-8 by itself, as a part of a character is not, as `bytes:` and its
bytes in hexadecimal.
"""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from symboliclight.core.tokenizer import Tokenizer
from symboliclight.generate.logprobs import Score
from symboliclight.serve.requests import Request
from symboliclight.serve.texts import Text


class Answer:
    """Builds the bodies that answer one request, whose texts a writer writes."""

    def __init__(self, request: Request, model: str, tokenizer: Tokenizer, texts: Sequence[Text]) -> None:
        chat = request.chat
        self._chat, self._seed = chat, request.seed
        self._head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
                      "object": "chat.completion" if chat else "text_completion",
                      "created": int(time.time()), "model": model}
        self._choices = [_Choice(request, tokenizer, text, i) for text in texts for i in range(len(text.rows))]

    def whole(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """The answer at once: one choice a text. All have ended."""
        choices = []
        for i, choice in enumerate(self._choices):
            done = choice.done
            text, logprobs = choice.take(done.text, done.finish)
            said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
            choices.append({"index": i, **said, "logprobs": logprobs, "finish_reason": _reason(done.finish)})
        return self._head | {"choices": choices, "usage": usage, "seed": self._seed}

    def pieces(self, index: int, piece: str, finish: str) -> Iterator[dict[str, Any]]:
        """Chunks of a stream for what came of one text."""
        head = self._head | ({"object": "chat.completion.chunk"} if self._chat else {})
        first = not self._choices[index].begun
        text, logprobs = self._choices[index].take(piece, finish)
        if not self._chat:
            yield head | {"choices": [{"index": index, "text": text, "logprobs": logprobs,
                                       "finish_reason": _reason(finish)}]}
            return
        if first or text or logprobs:
            delta = {"role": "assistant", "content": text} if first else {"content": text}
            yield head | {"choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}]}
        if finish:
            end = {"index": index, "delta": {}, "logprobs": None, "finish_reason": _reason(finish)}
            yield head | {"choices": [end]}

    def last(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """The chunk with the tokens that were used."""
        return self._head | ({"object": "chat.completion.chunk"} if self._chat else {}) | {
            "choices": [], "usage": usage, "seed": self._seed}


class _Choice:
    """What of one text was told: its characters, and the tokens that they are made of."""

    def __init__(self, request: Request, tokenizer: Tokenizer, text: Text, row: int) -> None:
        self.done, self.begun = text.rows[row].done, False
        self._request, self._tokenizer, self._text = request, tokenizer, text
        self._stream, self._said, self._shown, self._told = tokenizer.stream(), 0, 0, 0

    def take(self, piece: str, finish: str) -> tuple[str, dict[str, Any] | None]:
        """The text and the log-probabilities to tell with `piece`: tokens go with their first character."""
        before: list[tuple[int, Score]] = []
        if not self.begun and self._request.echo:
            prompt = self._tokenizer.decode(self._text.prompt)
            self._said = len(prompt) - len(_unstripped(self._tokenizer, self._text.prompt))
            before = self._placed(self._text.scores)
            self._said, self._stream = len(prompt), self._tokenizer.stream()
            piece = prompt + piece
        self.begun = True
        self._shown += len(piece)
        found = before
        while self._told < len(self.done.scores) and (finish or self._said < self._shown):
            found += self._placed(self.done.scores[self._told : self._told + 1])
            self._told += 1
        if self._request.logprobs is None or not found:
            return piece, None
        form = _of_chat if self._request.chat else _of_completion
        return piece, form(self._tokenizer, found)

    def _placed(self, scores: Sequence[Score]) -> list[tuple[int, Score]]:
        """Each with the character of the choice's text that it begins in."""
        found = []
        for score in scores:
            found.append((max(0, self._said), score))
            self._said += len(self._stream.push(score.token))
        return found


def _unstripped(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """As `decode`, with the spaces at the beginning that some tokenizers add and take away."""
    stream = tokenizer.stream()
    return "".join(map(stream.push, ids)) + stream.flush()


def _of_chat(tokenizer: Tokenizer, tokens: Sequence[tuple[int, Score]]) -> dict[str, Any]:
    def told(token: int, logprob: float | None) -> dict[str, Any]:
        name, data = spelt(tokenizer, token)
        return {"token": name, "logprob": logprob, "bytes": list(data)}

    return {"content": [told(s.token, s.logprob) | {"top_logprobs": [told(*one) for one in s.top]} for _, s in tokens],
            "refusal": None}


def _of_completion(tokenizer: Tokenizer, tokens: Sequence[tuple[int, Score]]) -> dict[str, Any]:
    """Among the likeliest the token itself is always told, so there may be one more. Two of one text are told once."""
    likeliest: list[dict[str, float] | None] = []
    for _, score in tokens:
        best: dict[str, float] = {}
        for token, logprob in score.top if score.logprob is None else (*score.top, (score.token, score.logprob)):
            best.setdefault(spelt(tokenizer, token)[0], logprob)
        likeliest.append(best if score.logprob is not None else None)
    return {"tokens": [spelt(tokenizer, score.token)[0] for _, score in tokens],
            "token_logprobs": [score.logprob for _, score in tokens],
            "top_logprobs": likeliest, "text_offset": [place for place, _ in tokens]}


def spelt(tokenizer: Tokenizer, token: int) -> tuple[str, bytes]:
    """What a token is told as, and its bytes: none for one that stands for no text."""
    if token >= tokenizer.vocab_size:  # a model may have more ids than its tokenizer
        return f"<{token}>", b""
    name, data = tokenizer.piece(token)
    if not data:
        return name, b""
    try:
        return data.decode(), data
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data


def usage(prompt: int, cached: int, written: int) -> dict[str, Any]:
    """Tokens of a request: read, of them remembered from before, and written."""
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": cached}}


def _reason(finish: str) -> str | None:
    return {"": None, "stop": "stop"}.get(finish, "length")
