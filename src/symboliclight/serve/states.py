"""States under a name: everything a prompt left behind, of one size at any length, to begin from, fork, take away and
bring back.

    POST /v1/states {"name", and "prompt" or "messages", "state"}   read a prompt, behind another state if one is named
    GET /v1/states      PUT, GET, DELETE /v1/states/NAME            list; bring, take and forget the file of one

A file is safetensors: the arrays of the runtime's state, and who it belongs to. It is checked as any stranger's file.
"""

import hashlib
import re
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from symboliclight.core.errors import InputError
from symboliclight.engine import Engine, State
from symboliclight.engine.files import map_tensors

NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
HEADER = 1 << 16  # bytes that a file may have beside its arrays


class UnknownState(InputError):
    """No state of that name."""

    status = 404


@dataclass(frozen=True)
class Saved:
    """A state that has read all tokens of its text but the last."""

    state: State
    last: int  # token
    tokens: int  # with the last

    @property
    def nbytes(self) -> int:
        return self.state.nbytes


class States:
    """The states of one model, at most `limit` bytes of them. Any thread may ask."""

    def __init__(self, model: Any, limit: int, digest: Callable[[], str]) -> None:
        """`digest` of the weights is computed when a file is first written or read."""
        self._model, self._limit, self._hash = model, limit, digest
        self._saved: dict[str, Saved] = {}
        self._lock = threading.Lock()

    @property
    def offered(self) -> bool:
        """Whether the model's states can be kept."""
        return isinstance(self._model, Engine)

    @cached_property
    def _digest(self) -> str:
        return self._hash()

    def require(self, name: Any) -> str:
        """A name that a state may have. Raises `InputError` for others, and for models that keep no such states."""
        if not self.offered:
            raise InputError("states are kept of the runtime only: serve with --precision, on the CPU")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InputError(f"the name of a state must be 1 to 64 letters, digits, and _ . -, got {name!r:.80}")
        return name

    def keep(self, name: str, saved: Saved) -> dict[str, Any]:
        """Keep a state, in place of one that has the name; what is told of it. Raises `InputError` without room."""
        with self._lock:
            others = sum(one.nbytes for key, one in self._saved.items() if key != name)
            if others + saved.nbytes > self._limit:
                raise InputError(f"there is no room for {saved.nbytes:,} bytes beside {others:,} of {self._limit:,}; "
                                 "delete a state first")
            self._saved[name] = saved
        return told(name, saved)

    def get(self, name: Any) -> Saved:
        """Raises `UnknownState`."""
        with self._lock:
            if name not in self._saved:
                raise UnknownState(f"there is no state {name!r:.80}; save one with POST /v1/states")
            return self._saved[name]

    def drop(self, name: str) -> None:
        """Forget a state. Raises `UnknownState`."""
        self.get(name)
        with self._lock:
            self._saved.pop(name, None)

    def all(self) -> list[dict[str, Any]]:
        with self._lock:
            return [told(name, saved) for name, saved in sorted(self._saved.items())]

    @property
    def largest(self) -> int:
        """Bytes that a file may have."""
        return int(self._model.initial_state(1).nbytes) + HEADER

    def packed(self, name: str) -> bytes:
        """The file of a state."""
        saved = self.get(name)
        about = {"last": str(saved.last), "tokens": str(saved.tokens), "weights": self._digest}
        return bytes(save(saved.state.copy().arrays(), about))

    def unpacked(self, data: bytes) -> Saved:
        """A state from its file. Raises `InputError` for anything but one of this model, of one sequence."""
        with tempfile.NamedTemporaryFile(suffix=".state") as file:
            file.write(data)
            file.flush()
            try:
                _, about = map_tensors(Path(file.name))
                if about.get("weights") != self._digest:
                    raise InputError("the file is the state of other weights, or of none; use one that this model made")
                state = State.load(file.name, self._model.config)
            except InputError as error:
                raise InputError(str(error).replace(file.name, "the file")) from error
        expected = {name: (array.dtype, array.shape) for name, array in self._model.initial_state(1).arrays().items()}
        if {name: (array.dtype, array.shape) for name, array in state.arrays().items()} != expected:
            raise InputError("the file is a state of another precision, or of several texts")
        last, tokens = (int(text) if text.isascii() and text.isdigit() and len(text) < 16 else -1
                        for text in (about.get("last", ""), about.get("tokens", "")))
        if not (0 <= last < self._model.config.vocab_size and tokens - 1 == int(state.position[0])):
            raise InputError("the file does not say how its text ends; use one that this server wrote")
        return Saved(state, last, tokens)


def told(name: str, saved: Saved) -> dict[str, Any]:
    return {"name": name, "object": "state", "tokens": saved.tokens, "bytes": saved.nbytes}


def file_digest(file: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    with file.open("rb") as data:
        while part := data.read(1 << 20):
            found.update(part)
    return found.hexdigest()
