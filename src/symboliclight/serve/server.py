"""Listens, and ends in good order."""

import asyncio
import contextlib
import signal
import socket

import uvicorn
from starlette.applications import Starlette

from symboliclight.serve.models import Models


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, models: Models, drain: float) -> None:
        super().__init__(config)
        self._models, self._drain = models, drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        late = asyncio.get_running_loop().call_later(self._drain, self._models.stop)
        await super().shutdown(sockets)
        late.cancel()


def run(app: Starlette, listening: socket.socket, models: Models, drain: float) -> None:
    """Serve until SIGINT or SIGTERM; then no connection is taken, and answers have `drain` seconds to end in. Those
    that have not ended then end with an error.
    """
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off",
                            timeout_graceful_shutdown=int(drain) + 2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises at the end what it was stopped with
    with contextlib.suppress(KeyboardInterrupt):  # which is how a server ends
        _Server(config, models, drain).run([listening])
