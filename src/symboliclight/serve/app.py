"""The routes: completions and chat, whole or as a stream of server-sent events; models, health, figures."""

import asyncio
import contextlib
import hmac
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.serve import page, spikes
from symboliclight.serve.answers import Answer, usage
from symboliclight.serve.embeddings import embeddings
from symboliclight.serve.errors import HANDLERS, Refused, problem
from symboliclight.serve.metrics import CONTENT, Requests, exposition
from symboliclight.serve.models import Models, Served
from symboliclight.serve.requests import Request, parse
from symboliclight.serve.responses import ResponseAnswer, to_chat
from symboliclight.serve.texts import Event, Text
from symboliclight.serve.tokens import detokenize, tokenize

LARGEST = 8 << 20  # bytes of a request
Shape = type[Answer] | type[ResponseAnswer]  # of what is told of a text


@dataclass(frozen=True)
class Service:
    """What the routes serve."""

    models: Models
    key: str | None = None  # what a request must bear; None: nothing
    origins: Sequence[str] = ()  # whose pages may ask; *: all
    prefix: str = ""  # of all paths
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)  # path and status -> requests


class _Job:
    """The texts of one request, and what the writer's thread says of them."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self.request, self._loop = request, asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.texts = [self._text(tokenizer, i, prompt) for i, prompt in enumerate(request.prompts)]

    def _text(self, tokenizer: Tokenizer, i: int, prompt: list[int]) -> Text:
        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
                self._loop.call_soon_threadsafe(self._events.put_nowait, (i * self.request.n + event.row, event))

        asked = self.request
        return Text(prompt, asked.rows(tokenizer, i), tell, scored=asked.logprobs if asked.echo else None,
                    only_read=not asked.max_tokens, spikes=asked.spikes)

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
        for text in self.texts:
            text.cancelled = True

    def usage(self) -> dict[str, Any]:
        return usage(sum(len(t.prompt) for t in self.texts), sum(t.cached for t in self.texts),
                     sum(len(row.done.ids) for t in self.texts for row in t.rows))


class _Routes:
    def __init__(self, service: Service) -> None:
        self._service, self._embedding = service, asyncio.Lock()

    async def completions(self, http: HttpRequest) -> Response:
        return await self._answer(http, await self._body(http), chat=False)

    async def chat(self, http: HttpRequest) -> Response:
        return await self._answer(http, await self._body(http), chat=True)

    async def responses(self, http: HttpRequest) -> Response:
        body = await self._body(http)
        return await self._answer(http, to_chat(body) | {"model": body.get("model")}, chat=True, shape=ResponseAnswer)

    async def models(self, http: HttpRequest) -> Response:
        """All models, or that of a name."""
        self._admit(http)
        found, wanted = self._service.models, http.path_params.get("name") or None
        if wanted not in (None, *found.names):
            raise Refused(404, f"there is no model {wanted:.60}; this server has {', '.join(found.names)}")
        if wanted:
            return JSONResponse(_model(wanted, found.read.get(wanted)))
        return JSONResponse({"object": "list", "data": [_model(name, found.read.get(name)) for name in found.names]})

    async def health(self, http: HttpRequest) -> Response:
        writers = [served.writer for served in self._service.models.read.values()]
        running, waiting = (sum(part) for part in zip((0, 0), *(writer.load() for writer in writers), strict=True))
        return JSONResponse({"status": "ok", "running": running, "waiting": waiting,
                             "slots": sum(writer.slots for writer in writers)})

    async def stats(self, http: HttpRequest) -> Response:
        """What was done with one model, and what the runtime read for it: bytes a token and active inputs by site."""
        self._admit(http)
        async with self._service.models.use(http.query_params.get("model")) as served:
            writer = served.writer
            found = asdict(writer.counts) | {"memory_states": len(writer.memory), "memory_bytes": writer.memory.nbytes}
            if hasattr(writer.model, "stats"):
                found["runtime"] = await run_in_threadpool(writer.model.stats)
            return JSONResponse(found)

    async def metrics(self, http: HttpRequest) -> Response:
        self._admit(http)
        return Response(exposition({name: served.writer for name, served in self._service.models.read.items()},
                                   self._service.answered), media_type=CONTENT)

    async def tokenize(self, http: HttpRequest) -> Response:
        return await self._convert(http, tokenize)

    async def detokenize(self, http: HttpRequest) -> Response:
        return await self._convert(http, detokenize)

    async def embeddings(self, http: HttpRequest) -> Response:
        self._admit(http)
        body = await _body(http)
        async with self._embedding, self._service.models.use(_name(body)) as served:  # one at a time, in pieces
            return JSONResponse(await run_in_threadpool(embeddings, body, served.writer.model, served.tokenizer,
                                                        served.name, served.defaults.max_prompt))

    async def _convert(self, http: HttpRequest, convert: Callable[[Any, Tokenizer], dict[str, Any]]) -> Response:
        self._admit(http)
        body = await _body(http)
        async with self._service.models.use(_name(body)) as served:
            return JSONResponse(await run_in_threadpool(convert, body, served.tokenizer))

    def _admit(self, http: HttpRequest) -> None:
        key = self._service.key
        given = http.headers.get("authorization", "").removeprefix("Bearer ")
        if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
            raise Refused(401, "this server wants its key: Authorization: Bearer KEY")

    async def _body(self, http: HttpRequest) -> Any:
        self._admit(http)
        return await _body(http)

    async def _answer(self, http: HttpRequest, body: Any, chat: bool, shape: Shape = Answer) -> Response:
        async with self._service.models.use(_name(body)) as served:
            request = await run_in_threadpool(parse, body, chat, served.tokenizer, served.defaults)
            job = _Job(served.tokenizer, request)
            answer, writer = shape(request, served.name, served.tokenizer, job.texts), served.writer
            writer.submit(job.texts)
        if request.stream:
            layout = writer.meter.layout() if request.spikes and writer.meter else None
            return StreamingResponse(_stream(job, answer, layout), media_type="text/event-stream",
                                     headers={"cache-control": "no-store"})
        ending = asyncio.create_task(_end(job))
        leaving = asyncio.create_task(_leave(http))
        try:
            await asyncio.wait({ending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                return Response(status_code=499)  # nobody is there to read it
            ending.result()
            return JSONResponse(answer.whole(job.usage()))
        finally:
            job.cancel()
            ending.cancel()
            leaving.cancel()


def _model(name: str, served: Served | None) -> dict[str, Any]:
    """What is told of a model; little of one that is not read yet."""
    about = {"id": name, "object": "model", "created": 0, "owned_by": "symboliclight", "loaded": served is not None}
    if served is None:
        return about
    config = served.writer.model.config
    return about | {"vocab_size": config.vocab_size, "layers": config.n_layers, "d_model": config.d_model,
                    "features": page.features(served.writer.meter is not None),
                    "defaults": page.defaults(served.defaults)}


def _name(body: Any) -> Any:
    """The model that a body asks for."""
    return body.get("model") if isinstance(body, dict) else None


async def _body(http: HttpRequest) -> Any:
    """The JSON of a request. Browsers send no JSON to other sites unasked, so only JSON is taken."""
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send JSON: Content-Type: application/json")
    data = b""
    async for part in http.stream():
        data += part
        if len(data) > LARGEST:
            raise Refused(413, f"a request may have {LARGEST >> 20} MiB")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON: {error}") from error


async def _end(job: _Job) -> None:
    async for _ in job.events():
        pass


async def _leave(http: HttpRequest) -> None:
    """Return when the client has gone."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _stream(job: _Job, answer: Answer | ResponseAnswer, layout: dict[str, Any] | None) -> AsyncIterator[str]:
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


def create_app(service: Service) -> Starlette:
    """The application, for any ASGI server."""
    routes, prefix = _Routes(service), service.prefix
    served: list[BaseRoute] = [
        Route("/", page.page),
        Route("/v1/completions", routes.completions, methods=["POST"]),
        Route("/v1/chat/completions", routes.chat, methods=["POST"]),
        Route("/v1/responses", routes.responses, methods=["POST"]),
        Route("/v1/embeddings", routes.embeddings, methods=["POST"]),
        Route("/v1/models", routes.models), Route("/v1/models/{name:path}", routes.models),
        Route("/tokenize", routes.tokenize, methods=["POST"]),
        Route("/detokenize", routes.detokenize, methods=["POST"]),
        Route("/health", routes.health), Route("/stats", routes.stats), Route("/metrics", routes.metrics)]
    paths = {prefix + route.path for route in served if isinstance(route, Route)}
    counting = Middleware(Requests, service.answered, paths)
    cors = Middleware(CORSMiddleware, service.origins, ("GET", "POST"), ("Authorization", "Content-Type"))
    return Starlette(
        routes=[Mount(prefix, routes=served)] if prefix else served,
        middleware=[counting, cors] if service.origins else [counting],
        exception_handlers=HANDLERS,
    )
