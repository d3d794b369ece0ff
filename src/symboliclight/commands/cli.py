"""Command line: `symboliclight COMMAND --help`.

Exit codes: 0 done, 1 interrupted or failed, 2 bad input (one line on stderr says what, where and how to fix it).
"""

import argparse
import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import symboliclight
from symboliclight.commands.streams import OutputError, discard_output, standard_streams
from symboliclight.core.errors import InputError, LeftOut, Slow

COMMANDS = ("corpus", "tokenizer", "train", "eval", "generate", "serve", "import_", "export", "demo", "study", "raster",
            "energy", "neuro", "bench", "info")


class _Parser(argparse.ArgumentParser):
    """One line on stderr instead of a usage block."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: error: {message}; see `{self.prog} --help`\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line; every command module adds its own part."""
    top = _Parser(prog="symboliclight", description="Train, evaluate, run and explain a spiking language model.")
    top.add_argument("--version", action="version", version=f"symboliclight {symboliclight.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"symboliclight.commands.{name}").add(commands)
    return top


_as_python_does = warnings.formatwarning


def _format_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    """Ours as one line; those of libraries as Python shows them."""
    if issubclass(category, (Slow, LeftOut)):
        return f"symboliclight: warning: {message}\n"
    return _as_python_does(message, category, *where, **more)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    warnings.formatwarning = _format_warning
    try:
        with standard_streams():
            args = parser().parse_args(argv)
            return args.run(args) or 0
    except InputError as error:
        print(f"symboliclight: error: {error}", file=sys.stderr)
        if isinstance(error, OutputError):
            discard_output()
        return 2
    except BrokenPipeError:  # the reader of a pipe has gone; nothing to say and nobody to say it to
        discard_output()
        return 1
    except KeyboardInterrupt:
        print("symboliclight: interrupted", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
