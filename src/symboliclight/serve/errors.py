"""What a client is told of an error, in the shape of OpenAI's API."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from symboliclight.core.errors import InputError
from symboliclight.serve.limits import TooMany
from symboliclight.serve.texts import Busy


class Refused(Exception):
    """A request that gets an error as its answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def problem(message: str, kind: str) -> dict[str, Any]:
    """An error in the shape of OpenAI's API."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


async def _refused(http: HttpRequest, error: Exception) -> Response:
    return JSONResponse(problem(str(error), "invalid_request_error"), getattr(error, "status", 400))


async def _nowhere(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(problem(f"{http.method} {http.url.path}: {error.detail}", "invalid_request_error"),
                        error.status_code, error.headers)


async def _busy(http: HttpRequest, error: Exception) -> Response:
    return JSONResponse(problem(str(error), "server_busy"), 503, {"Retry-After": "1"})


async def _too_many(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, TooMany)
    return JSONResponse(problem(str(error), "rate_limit_error"), 429, {"Retry-After": str(error.seconds)})


async def _failed(http: HttpRequest, error: Exception) -> Response:
    return JSONResponse(problem(f"{type(error).__name__}: {error}", "server_error"), 500)


async def _gone(http: HttpRequest, error: Exception) -> Response:
    return Response(status_code=499)


HANDLERS: dict[Any, Any] = {InputError: _refused, Refused: _refused, Busy: _busy, TooMany: _too_many,
                            ClientDisconnect: _gone, HTTPException: _nowhere, Exception: _failed}
