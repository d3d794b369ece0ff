"""A name for every request, told back in X-Request-Id, and a line for each on stderr where one is wanted."""

import json
import re
import secrets
import sys
import time
from collections.abc import Callable, MutableMapping
from datetime import datetime, timezone
from typing import Any, Literal

ID = re.compile(r"[\w.-]{1,128}", re.ASCII)
Form = Literal["text", "json"]


class Access:
    """ASGI middleware."""

    def __init__(self, app: Any, form: Form | None = None, write: Callable[[str], object] | None = None) -> None:
        self._app, self._form, self._write = app, form, write or _to_stderr

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        name = given if ID.fullmatch(given) else secrets.token_hex(8)
        start, status = time.perf_counter(), 500

        async def told(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self._app(scope, receive, told)
        finally:
            if self._form:
                self._write(self._line(scope, name, status, time.perf_counter() - start))

    def _line(self, scope: Any, name: str, status: int, seconds: float) -> str:
        client = (scope.get("client") or ("-",))[0]
        if self._form == "text":
            version = scope.get("http_version", "1.1")
            path = ascii(scope["path"])[1:-1]  # one line, whatever a client sends
            return f'{client} {name} "{scope["method"]} {path} HTTP/{version}" {status} {seconds:.3f}'
        about = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "id": name, "client": client,
                 "method": scope["method"], "path": scope["path"], "status": status, "seconds": round(seconds, 4)}
        return json.dumps(about | scope.get("state", {}).get("told", dict)())


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
