"""Listens, and ends in good order."""

import asyncio
import contextlib
import copy
import socket

import uvicorn
import uvicorn.config
from starlette.applications import Starlette

from symboliclight.serve.models import Models

STOPPING = 3  # seconds that answers have to end in once the server is stopped; then they end with an error


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, models: Models) -> None:
        super().__init__(config)
        self._models = models

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        late = asyncio.get_running_loop().call_later(STOPPING, self._models.stop)
        await super().shutdown(sockets)
        late.cancel()


def run(app: Starlette, listening: socket.socket, models: Models, log: bool) -> None:
    """Serve until SIGINT or SIGTERM; with `log`, a line on stderr for each request."""
    to_stderr = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    to_stderr["handlers"]["access"]["stream"] = "ext://sys.stderr"
    config = uvicorn.Config(app, log_config=to_stderr, log_level="info" if log else "warning", access_log=log,
                            lifespan="off", timeout_graceful_shutdown=STOPPING + 2)
    with contextlib.suppress(KeyboardInterrupt):  # which is how a server ends
        _Server(config, models).run([listening])
