"""`symboliclight serve`."""

import argparse
import re
import socket
from pathlib import Path
from typing import Any

from symboliclight.commands.models import (
    add_device,
    add_model_or_shipped,
    add_precision,
    add_sampling,
    add_threads,
    add_turns,
    label_of,
    sampling_of,
    turns_of,
)
from symboliclight.core.errors import InputError
from symboliclight.engine import exported_precision
from symboliclight.generate.runner import load_runner


def add(commands: Any) -> None:
    """Add the parser."""
    p = commands.add_parser("serve", help="answer over HTTP as OpenAI's completion API does, many texts at once")
    add_model_or_shipped(p)
    add_precision(p, "float32, or that of an exported folder; on a GPU the torch model")
    add_device(p)
    p.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to listen on (default: 127.0.0.1)")
    p.add_argument("--port", type=int, default=8080, metavar="N", help="port to listen on; 0: any free (default: 8080)")
    p.add_argument("--slots", type=int, default=16, metavar="N", help="texts written at once (default: 16)")
    add_threads(p)
    p.add_argument("--memory", type=int, default=512, metavar="MIB",
                   help="room for states of texts that were read, so that they are not read again (default: 512)")
    p.add_argument("--key-file", metavar="FILE", help="a text file: the key that requests must bear (default: none)")
    add_turns(p)
    p.add_argument("--max-prompt", type=int, metavar="TOKENS", help="refuse longer prompts (default: none)")
    p.add_argument("--cors", action="append", default=[], metavar="ORIGIN",
                   help="a site whose pages may ask, such as https://example.org; *: all; may be repeated")
    p.add_argument("--api-prefix", default="", metavar="PATH", help="path before all others, such as /model")
    p.add_argument("--log", action="store_true", help="print a line for every request on stderr")
    add_sampling(p.add_argument_group("what a request gets that does not say otherwise"), seed=False)
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    try:
        from symboliclight.serve.app import Service, create_app
        from symboliclight.serve.memory import Memory
        from symboliclight.serve.requests import Defaults
        from symboliclight.serve.server import run
        from symboliclight.serve.writer import Writer
    except ImportError as error:
        raise InputError("serve needs starlette and uvicorn: pip install 'symboliclight[serve]'") from error
    for name, least in (("slots", 1), ("memory", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    _check_web(args)
    turns = turns_of(args)
    defaults = Defaults(sampling_of(args), args.max_tokens, args.stop, turns, args.max_prompt)
    key = _key(args.key_file)
    precision = args.precision
    if precision is None and args.device == "cpu":
        precision = exported_precision(args.model) or "float32"
    model, tokenizer = load_runner(args.model, precision, args.threads, args.device)
    if model.config.exit_entropy is not None:
        raise InputError(f"{args.model} stops at an inner layer if all texts of a call allow it (model.exit_entropy): "
                         "each would depend on the others; set it to null in its config.json")
    if turns:
        tokenizer.special("end")  # in one line now rather than with the first request
    with _listen(args.host, args.port) as listening, Writer(model, args.slots, Memory(args.memory << 20)) as writer:
        app = create_app(Service(label_of(args.model), tokenizer, writer, defaults, key, args.cors, args.api_prefix))
        host, port = listening.getsockname()[:2]
        print(f"{label_of(args.model)} at {precision or args.device}, {args.slots} texts at once: "
              f"http://{f'[{host}]' if ':' in host else host}:{port}{args.api_prefix}/v1 (Ctrl-C stops)", flush=True)
        run(app, listening, writer, args.log)
    print("stopped")


def _check_web(args: argparse.Namespace) -> None:
    if args.max_prompt is not None and args.max_prompt < 1:
        raise InputError(f"--max-prompt must be at least 1, got {args.max_prompt}")
    for origin in args.cors:
        if not re.fullmatch(r"\*|https?://[^/\s*]+", origin):
            raise InputError(f"--cors wants an origin such as https://example.org, or *, got {origin}")
    if not re.fullmatch(r"(/[\w.~-]+)*", args.api_prefix, re.ASCII):
        raise InputError(f"--api-prefix wants a path such as /model, without a slash at its end, got {args.api_prefix}")


def _key(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; --key-file wants a text file") from error
    if not key:
        raise InputError(f"{path} is empty; write a key into it")
    return key


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
