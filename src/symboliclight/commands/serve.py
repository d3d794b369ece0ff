"""`symboliclight serve`."""

import argparse
import contextlib
import re
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from symboliclight.commands.models import (
    add_device,
    add_precision,
    add_sampling,
    add_threads,
    add_turns,
    label_of,
    sampling_of,
)
from symboliclight.core.checkpoint import MODEL, has_turns, locate, weight_bytes
from symboliclight.core.errors import InputError
from symboliclight.engine import exported_precision
from symboliclight.engine.pack import Precision
from symboliclight.generate.runner import SHIPPED, load_runner

if TYPE_CHECKING:
    from symboliclight.serve.models import Served


def add(commands: Any) -> None:
    """Add the parser."""
    p = commands.add_parser("serve", help="answer over HTTP as OpenAI's completion API does, many texts at once")
    p.add_argument("--model", action="append", metavar="[NAME=]DIR",
                   help="a checkpoint, an exported folder, or the folder of a run (default: the small model that comes "
                        "with the package); may be repeated: requests choose by name, and others than the first are "
                        "read when they are first asked for")
    p.add_argument("--model-memory", type=int, metavar="MIB",
                   help="of several models: room for weights; those asked for longest ago are let go (default: all "
                        "stay)")
    add_precision(p, "float32, or that of an exported folder; on a GPU the torch model")
    add_device(p)
    p.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to listen on (default: 127.0.0.1)")
    p.add_argument("--port", type=int, default=8080, metavar="N", help="port to listen on; 0: any free (default: 8080)")
    p.add_argument("--slots", type=int, default=16, metavar="N", help="texts written at once (default: 16)")
    add_threads(p)
    p.add_argument("--memory", type=int, default=512, metavar="MIB",
                   help="room for states of texts that were read, so that they are not read again (default: 512)")
    p.add_argument("--state-memory", type=int, default=256, metavar="MIB",
                   help="room for states that clients save under a name (default: 256)")
    p.add_argument("--key-file", metavar="FILE",
                   help="a text file with a key a line, one of which requests must bear (default: none)")
    p.add_argument("--limit-requests", type=int, metavar="N",
                   help="requests a minute of a key or an address (default: any)")
    p.add_argument("--limit-tokens", type=int, metavar="N",
                   help="tokens a minute, read and written, of a key or an address (default: any)")
    p.add_argument("--drain", type=float, default=3, metavar="SECONDS",
                   help="how long answers may go on once the server is stopped (default: 3)")
    add_turns(p)
    p.add_argument("--max-prompt", type=int, metavar="TOKENS", help="refuse longer prompts (default: none)")
    p.add_argument("--cors", action="append", default=[], metavar="ORIGIN",
                   help="a site whose pages may ask, such as https://example.org; *: all; may be repeated")
    p.add_argument("--api-prefix", default="", metavar="PATH", help="path before all others, such as /model")
    p.add_argument("--log", nargs="?", const="text", choices=("text", "json"),
                   help="print a line for every request on stderr: as text, or as JSON with what it took")
    add_sampling(p.add_argument_group("what a request gets that does not say otherwise"), seed=False)
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    try:
        from symboliclight.serve.app import Service, create_app
        from symboliclight.serve.limits import Limits
        from symboliclight.serve.models import Loader, Models
        from symboliclight.serve.server import run
    except ImportError as error:
        raise InputError("serve needs starlette and uvicorn: pip install 'symboliclight[serve]'") from error
    for name, least in (("slots", 1), ("memory", 0), ("state_memory", 0), ("model_memory", 1), ("limit_requests", 1),
                        ("limit_tokens", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(args, name)}")
    _check_web(args)
    folders, keys = _folders(args.model or [str(SHIPPED)]), _keys(args.key_file)
    sampling_of(args)  # what is wrong with it is said now
    loaders = {name: Loader(partial(_load, name, one, args), weight_bytes(one)) for name, one in folders.items()}
    models = Models(loaders, None if args.model_memory is None else args.model_memory << 20)
    first, folder = next(iter(folders.items()))
    with contextlib.closing(models), _listen(args.host, args.port) as listening:
        models.add(_load(first, folder, args))
        limits = Limits(args.limit_requests, args.limit_tokens)
        app = create_app(Service(models, keys, args.cors, args.api_prefix, limits, args.log))
        host, port = listening.getsockname()[:2]
        others = f" ({', '.join(list(folders)[1:])} when asked for)" if len(folders) > 1 else ""
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}{args.api_prefix}"
        print(f"{first} at {_precision(folder, args) or args.device}{others}, {args.slots} texts at once: {where}/v1, "
              f"and a page at {where}/ (Ctrl-C stops)", flush=True)
        run(app, listening, models, args.drain)
    print("stopped")


def _folders(given: list[str]) -> dict[str, str]:
    """Name -> folder of every --model, each of them there."""
    folders: dict[str, str] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        name, folder = (name, folder) if equals and name and not Path(one).exists() else (label_of(one), one)
        if name in folders:
            raise InputError(f"two models are called {name}; name one of them: --model NAME={folder}")
        locate(folder)
        folders[name] = folder
    return folders


def _precision(folder: str, args: argparse.Namespace) -> str | None:
    if args.precision is None and args.device == "cpu":
        return exported_precision(folder) or "float32"
    return cast("str | None", args.precision)


def _load(name: str, folder: str, args: argparse.Namespace) -> "Served":
    from symboliclight.serve.memory import Memory
    from symboliclight.serve.models import Served
    from symboliclight.serve.requests import Defaults
    from symboliclight.serve.states import States, file_digest
    from symboliclight.serve.writer import Writer

    turns = has_turns(folder) if args.turns is None else bool(args.turns)
    precision = cast("Precision | None", _precision(folder, args))
    model, tokenizer = load_runner(folder, precision, args.threads, args.device)
    if model.config.exit_entropy is not None:
        raise InputError(f"{folder} stops at an inner layer if all texts of a call allow it (model.exit_entropy): "
                         "each would depend on the others; set it to null in its config.json")
    if turns:
        tokenizer.special("end")  # in one line now rather than with the first request
    defaults = Defaults(sampling_of(args), args.max_tokens, args.stop, turns, args.max_prompt)
    weights = locate(folder) / MODEL
    states = States(model, args.state_memory << 20, lambda: file_digest(weights))
    return Served(name, tokenizer, Writer(model, args.slots, Memory(args.memory << 20)), defaults, states)


def _check_web(args: argparse.Namespace) -> None:
    if not 0 <= args.drain < 86400:
        raise InputError(f"--drain must be seconds, 0 or more, less than a day, got {args.drain}")
    if args.max_prompt is not None and args.max_prompt < 1:
        raise InputError(f"--max-prompt must be at least 1, got {args.max_prompt}")
    for origin in args.cors:
        if not re.fullmatch(r"\*|https?://[^/\s*]+", origin):
            raise InputError(f"--cors wants an origin such as https://example.org, or *, got {origin}")
    if not re.fullmatch(r"(/[\w.~-]+)*", args.api_prefix, re.ASCII):
        raise InputError(f"--api-prefix wants a path such as /model, without a slash at its end, got {args.api_prefix}")


def _keys(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        keys = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; --key-file wants a text file") from error
    if not keys:
        raise InputError(f"{path} is empty; write a key into it")
    return keys


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}; choose "
                         "others with --host and --port") from error
    # An answer is two writes, and the second must not wait for the client to acknowledge the first (Nagle's algorithm):
    # a connection takes the option from here, or from asyncio, which sets it only where the protocol is named.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listening.detach())
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
