"""Standard input and output of a command, whatever they are: closed, full, or of another encoding than UTF-8."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from symboliclight.core.errors import InputError


class OutputError(InputError):
    """Standard output cannot be written to."""


class _Output:
    """Standard output whose failures are told apart from those of files, which say their own path."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _named():
            return self._stream.write(text)

    def flush(self) -> None:
        with _named():
            self._stream.flush()


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror}; free some space, or write elsewhere"
                          ) from error


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Have streams that any command can use; what was printed is written when the block ends, or an error is raised."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if getattr(sys.stdout, "errors", None) in ("strict", "surrogateescape") and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does: \u6625 rather than a traceback
    with contextlib.redirect_stdout(_Output(sys.stdout)):
        try:
            yield
        finally:
            sys.stdout.flush()


def print_bytes(data: bytes) -> None:
    """Print bytes as they are, whatever the encoding."""
    sys.stdout.flush()
    with _named():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def discard_output() -> None:
    """Let nothing more be written to standard output, also not when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def utf8_text(text: str) -> str:
    """Text of the command line or of standard input, also where the locale (C, POSIX) does not say that it is UTF-8.

    Raises `InputError` for bytes that are not.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode("utf-8", "surrogateescape").decode()
        except UnicodeDecodeError as error:
            raise InputError(f"the text {text!a:.60} is not UTF-8 (byte {error.start}); convert it first"
                             ) from error
        except UnicodeEncodeError:
            pass  # a lone surrogate, which no bytes stand for
    return text
