"""A request at work: its texts, and what comes of them, whole or as server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request as HttpRequest

from symboliclight.core.tokenizer import Tokenizer
from symboliclight.serve import spikes
from symboliclight.serve.answers import Answer, usage
from symboliclight.serve.errors import problem
from symboliclight.serve.requests import Request
from symboliclight.serve.responses import ResponseAnswer
from symboliclight.serve.states import Saved
from symboliclight.serve.texts import Event, Text

Shape = type[Answer] | type[ResponseAnswer]  # of what is told of a text


class Job:
    """The texts of one request, and what the writer's thread says of them."""

    def __init__(self, tokenizer: Tokenizer, request: Request, before: Saved | None = None,
                 spend: Callable[[int], None] = lambda tokens: None) -> None:
        """`before`: what the prompts are read behind; `spend` is told once, at the end, how many tokens it took."""
        self.request, self._loop, self.before = request, asyncio.get_running_loop(), before
        self._spend: Callable[[int], None] | None = spend
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.texts = [self._text(tokenizer, i, prompt) for i, prompt in enumerate(request.prompts)]

    def _text(self, tokenizer: Tokenizer, i: int, prompt: list[int]) -> Text:
        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
                self._loop.call_soon_threadsafe(self._events.put_nowait, (i * self.request.n + event.row, event))

        asked, begin = self.request, None
        if self.before is not None:
            prompt, begin = [self.before.last, *prompt], self.before.state
        return Text(prompt, asked.rows(tokenizer, i), tell, scored=asked.logprobs if asked.echo else None,
                    only_read=not asked.max_tokens, quiet=not asked.stream, spikes=asked.spikes, begin=begin)

    async def events(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """What has come, as (choice, event), until all texts have ended. Raises the error of one that failed."""
        left = len(self.texts) * self.request.n
        while left:
            come = [await self._events.get()]
            while not self._events.empty():
                come.append(self._events.get_nowait())
            for _, event in come:
                if event.error is not None:
                    raise event.error
                left -= bool(event.finish)
            yield come

    def cancel(self) -> None:
        """It has ended, or nobody is there to read it."""
        for text in self.texts:
            text.cancelled = True
        spend, self._spend = self._spend, None
        if spend is not None:
            spend(self.usage()["total_tokens"])

    def told(self) -> dict[str, Any]:
        """What a log says of it."""
        used = self.usage()
        return {"prompt_tokens": used["prompt_tokens"], "written_tokens": used["completion_tokens"],
                "cached_tokens": used["prompt_tokens_details"]["cached_tokens"]}

    def usage(self) -> dict[str, Any]:
        return usage(sum(len(t.prompt) for t in self.texts), sum(t.cached for t in self.texts),
                     sum(len(row.done.ids) for t in self.texts for row in t.rows))


async def written(http: HttpRequest, job: Job) -> bool:
    """Wait until all texts have ended, and raise what went wrong; False: the client has gone, they go no further."""
    ending, leaving = asyncio.create_task(_ended(job)), asyncio.create_task(_left(http))
    try:
        await asyncio.wait({ending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            ending.result()
        return ending.done()
    finally:
        job.cancel()
        ending.cancel()
        leaving.cancel()


async def _ended(job: Job) -> None:
    async for _ in job.events():
        pass


async def _left(http: HttpRequest) -> None:
    """Return when the client has gone."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def streamed(job: Job, answer: Answer | ResponseAnswer, layout: dict[str, Any] | None) -> AsyncIterator[str]:
    try:
        if layout is not None:
            yield spikes.sent(layout)
        async for come in job.events():
            sent = ""
            for choice, event in come:
                if event.spikes is not None:
                    sent += spikes.sent({"index": choice} | event.spikes)
                    if not event.piece and not event.finish:
                        continue  # the text goes on with a later token
                sent += "".join(map(_sent, answer.pieces(choice, event.piece, event.finish)))
            yield sent
        if job.request.usage or isinstance(answer, ResponseAnswer):
            yield _sent(answer.last(job.usage()))
        yield "data: [DONE]\n\n"
    except Exception as error:  # too late for a status
        yield _sent(problem(str(error), "server_error"))
    finally:
        job.cancel()


def _sent(value: Any) -> str:
    """A server-sent event, named where the value has a type."""
    named = f"event: {value['type']}\n" if "type" in value else ""
    return f"{named}data: {json.dumps(value, ensure_ascii=False)}\n\n"
