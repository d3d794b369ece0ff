"""The routes: completions and chat, whole or as a stream of server-sent events; models, health, figures."""

import asyncio
import hmac
import json
from collections import Counter
from collections.abc import Callable, Sequence
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
from symboliclight.serve import page
from symboliclight.serve.access import Access, Form
from symboliclight.serve.answers import Answer
from symboliclight.serve.embeddings import embeddings
from symboliclight.serve.errors import HANDLERS, Refused
from symboliclight.serve.jobs import Job, Shape, streamed, written
from symboliclight.serve.limits import Limits
from symboliclight.serve.metrics import CONTENT, Requests, exposition
from symboliclight.serve.models import Models, Served
from symboliclight.serve.requests import Request, parse, to_read
from symboliclight.serve.responses import ResponseAnswer, to_chat
from symboliclight.serve.states import Saved
from symboliclight.serve.tokens import detokenize, tokenize

LARGEST = 8 << 20  # bytes of a request


@dataclass(frozen=True)
class Service:
    """What the routes serve."""

    models: Models
    keys: Sequence[str] = ()  # one of which a request must bear; none: nothing
    origins: Sequence[str] = ()  # whose pages may ask; *: all
    prefix: str = ""  # of all paths
    limits: Limits = field(default_factory=Limits)
    log: Form | None = None  # of a line for every request
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)  # path and status -> requests


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
        body = await self._body(http)
        async with self._embedding, self._service.models.use(_name(body)) as served:  # one at a time, in pieces
            found = await run_in_threadpool(embeddings, body, served.writer.model, served.tokenizer, served.name,
                                            served.defaults.max_prompt)
        self._service.limits.spend(http.state.client, found["usage"]["total_tokens"])
        return JSONResponse(found)

    async def states(self, http: HttpRequest) -> Response:
        """All states of a model."""
        self._admit(http)
        async with self._service.models.use(http.query_params.get("model")) as served:
            return JSONResponse({"object": "list", "data": served.states.all()})

    async def save(self, http: HttpRequest) -> Response:
        """Read a prompt, and keep the state behind it under a name."""
        body = await self._body(http)
        async with self._service.models.use(_name(body)) as served:
            request, name = await run_in_threadpool(to_read, body, served.tokenizer, served.defaults)
            served.states.require(name)
            job = self._job(http, served, request)
            served.writer.submit(job.texts)
            if not await written(http, job):
                return Response(status_code=499)
            (text,) = job.texts
            tokens = len(text.prompt) + (job.before.tokens - 1 if job.before else 0)
            return JSONResponse(served.states.keep(name, Saved(text.kept, text.prompt[-1], tokens)))

    async def one_state(self, http: HttpRequest) -> Response:
        """GET: its file; PUT: bring one; DELETE: forget it."""
        self._admit(http)
        async with self._service.models.use(http.query_params.get("model")) as served:
            states, name = served.states, served.states.require(http.path_params["name"])
            if http.method == "DELETE":
                states.drop(name)
                return JSONResponse({"name": name, "object": "state", "deleted": True})
            if http.method == "PUT":
                data = await _data(http, states.largest)
                return JSONResponse(states.keep(name, await run_in_threadpool(states.unpacked, data)))
            return Response(await run_in_threadpool(states.packed, name), media_type="application/octet-stream",
                            headers={"Content-Disposition": f'attachment; filename="{name}.state"'})

    async def _convert(self, http: HttpRequest, convert: Callable[[Any, Tokenizer], dict[str, Any]]) -> Response:
        body = await self._body(http)
        async with self._service.models.use(_name(body)) as served:
            return JSONResponse(await run_in_threadpool(convert, body, served.tokenizer))

    def _admit(self, http: HttpRequest) -> str:
        """Who asks: a key, or an address. Raises `Refused` without a key that is wanted, `TooMany`."""
        given = http.headers.get("authorization", "").removeprefix("Bearer ").encode()
        matches = [hmac.compare_digest(given, key.encode()) for key in self._service.keys]
        if matches and not any(matches):
            raise Refused(401, "this server wants its key: Authorization: Bearer KEY")
        client = f"key {matches.index(True) + 1}" if matches else http.client.host if http.client else "-"
        if http.method != "GET":
            self._service.limits.admit(client)
        return client

    async def _body(self, http: HttpRequest) -> Any:
        http.state.client = self._admit(http)
        return await _body(http)

    def _job(self, http: HttpRequest, served: Served, request: Request) -> Job:
        before = None if request.state is None else served.states.get(request.state)
        job = Job(served.tokenizer, request, before,
                  lambda tokens: self._service.limits.spend(http.state.client, tokens))
        http.state.told = lambda: {"model": served.name, **job.told()}
        return job

    async def _answer(self, http: HttpRequest, body: Any, chat: bool, shape: Shape = Answer) -> Response:
        async with self._service.models.use(_name(body)) as served:
            request = await run_in_threadpool(parse, body, chat, served.tokenizer, served.defaults)
            job = self._job(http, served, request)
            answer, writer = shape(request, served.name, served.tokenizer, job.texts), served.writer
            writer.submit(job.texts)
        if request.stream:
            layout = writer.meter.layout() if request.spikes and writer.meter else None
            return StreamingResponse(streamed(job, answer, layout), media_type="text/event-stream",
                                     headers={"cache-control": "no-store"})
        if not await written(http, job):
            return Response(status_code=499)  # nobody is there to read it
        return JSONResponse(answer.whole(job.usage()))


def _model(name: str, served: Served | None) -> dict[str, Any]:
    """What is told of a model; little of one that is not read yet."""
    about = {"id": name, "object": "model", "created": 0, "owned_by": "symboliclight", "loaded": served is not None}
    if served is None:
        return about
    config = served.writer.model.config
    return about | {"vocab_size": config.vocab_size, "layers": config.n_layers, "d_model": config.d_model,
                    "features": page.features(served.writer.meter is not None, served.states.offered),
                    "defaults": page.defaults(served.defaults)}


def _name(body: Any) -> Any:
    """The model that a body asks for."""
    return body.get("model") if isinstance(body, dict) else None


async def _body(http: HttpRequest) -> Any:
    """The JSON of a request. Browsers send no JSON to other sites unasked, so only JSON is taken."""
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send JSON: Content-Type: application/json")
    data = await _data(http, LARGEST)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is not JSON: {error}") from error


async def _data(http: HttpRequest, most: int) -> bytes:
    data = b""
    async for part in http.stream():
        data += part
        if len(data) > most:
            raise Refused(413, f"this request may have {most:,} bytes")
    return data


def create_app(service: Service) -> Starlette:
    """The application, for any ASGI server."""
    routes, prefix = _Routes(service), service.prefix
    served: list[BaseRoute] = [
        Route("/", page.page),
        Route("/v1/completions", routes.completions, methods=["POST"]),
        Route("/v1/chat/completions", routes.chat, methods=["POST"]),
        Route("/v1/responses", routes.responses, methods=["POST"]),
        Route("/v1/states", routes.states), Route("/v1/states", routes.save, methods=["POST"]),
        Route("/v1/states/{name}", routes.one_state, methods=["GET", "PUT", "DELETE"]),
        Route("/v1/embeddings", routes.embeddings, methods=["POST"]),
        Route("/v1/models", routes.models), Route("/v1/models/{name:path}", routes.models),
        Route("/tokenize", routes.tokenize, methods=["POST"]),
        Route("/detokenize", routes.detokenize, methods=["POST"]),
        Route("/health", routes.health), Route("/stats", routes.stats), Route("/metrics", routes.metrics)]
    paths = {prefix + route.path for route in served if isinstance(route, Route)}
    outside = [Middleware(Access, service.log), Middleware(Requests, service.answered, paths)]
    methods = ("GET", "POST", "PUT", "DELETE")
    cors = Middleware(CORSMiddleware, service.origins, methods, ("*",), expose_headers=("X-Request-Id", "Retry-After"))
    return Starlette(
        routes=[Mount(prefix, routes=served)] if prefix else served,
        middleware=[*outside, cors] if service.origins else outside,
        exception_handlers=HANDLERS,
    )
