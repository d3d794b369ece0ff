"""The models of a server: read when first asked for, and let go, those asked for longest ago first, under a limit."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool

from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.serve.requests import Defaults
from symboliclight.serve.states import States
from symboliclight.serve.texts import Busy
from symboliclight.serve.writer import Writer


@dataclass(eq=False)
class Served:
    """A model that is read, and what writes with it."""

    name: str
    tokenizer: Tokenizer
    writer: Writer
    defaults: Defaults
    states: States
    claims: int = field(default=0, init=False)  # requests that use it and are no text of its writer yet

    @property
    def busy(self) -> bool:
        return self.claims > 0 or any(self.writer.load())


class Loader(NamedTuple):
    """How a model is read, and how large it will be."""

    load: Callable[[], Served]
    nbytes: int  # of its weights


class Models:
    """Name -> model. All that are read have at most `limit` bytes of weights together, but for one that is alone."""

    def __init__(self, loaders: Mapping[str, Loader], limit: int | None = None) -> None:
        self._loaders, self._limit = dict(loaders), limit
        self._read: dict[str, Served] = {}  # the one asked for last is last
        self._reading = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        return list(self._loaders)

    @property
    def read(self) -> dict[str, Served]:
        """Those in memory."""
        return dict(self._read)

    def add(self, served: Served) -> None:
        """Read before it is asked for."""
        self._read[served.name] = served

    @asynccontextmanager
    async def use(self, name: Any) -> AsyncIterator[Served]:
        """A model by its name, kept while in use; where there is one, whatever the name, and where there is no name,
        the first.

        Raises `UnknownModel`; `Busy` if there is no room because all others are in use.
        """
        chosen = self.names[0] if name is None or len(self._loaders) == 1 else name
        if not isinstance(chosen, str) or chosen not in self._loaders:
            raise UnknownModel(f"there is no model {chosen!r:.60}; this server has {', '.join(self.names)}")
        async with self._reading:
            served = self._read.pop(chosen, None) or await self._load(chosen)
            self._read[chosen] = served
            served.claims += 1
        try:
            yield served
        finally:
            served.claims -= 1

    async def _load(self, name: str) -> Served:
        while self._read and self._limit is not None and self._size(name, *self._read) > self._limit:
            idle = next((one for one in self._read.values() if not one.busy), None)
            if idle is None:
                raise Busy(f"there is no room for {name} while {', '.join(self._read)} write; ask again later")
            del self._read[idle.name]
            await run_in_threadpool(idle.writer.close)
        return await run_in_threadpool(self._loaders[name].load)

    def _size(self, *names: str) -> int:
        return sum(self._loaders[name].nbytes for name in names)

    def stop(self) -> None:
        """Texts that have not ended are told so."""
        for served in self._read.values():
            served.writer.stop()

    def close(self) -> None:
        for served in self._read.values():
            served.writer.close()


class UnknownModel(InputError):
    """No model of that name."""

    status = 404
