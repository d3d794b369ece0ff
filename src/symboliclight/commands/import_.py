"""`symboliclight import`: a published checkpoint as a checkpoint folder."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from symboliclight.commands.output import byte_progress, print_json
from symboliclight.core.errors import InputError
from symboliclight.interop.released import FETCH

_ABOUT = f"""
Read a SymbolicLight V1 checkpoint as it was published (194M or 0.8B) and write it as a checkpoint folder that every
command takes. No code in the file is run; every name, shape and dtype is checked. Fetch the published files with
`{FETCH[0]}` and `{FETCH[1]}`.
"""


def add(commands: Any) -> None:
    """Add the parser."""
    p = commands.add_parser("import", help="convert a published .pt checkpoint", description=_ABOUT)
    p.add_argument("file", type=Path, metavar="FILE", help="the published .pt file")
    p.add_argument("--tokenizer", type=Path, metavar="FILE",
                   help="its sl_tokenizer.model (default: none; the folder then computes logits, but takes no text)")
    p.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder to write; a model there is replaced")
    p.add_argument("--sha256", metavar="HEX",
                   help="refuse a file with another hash (default: the published one, for a file of a published size)")
    p.add_argument("--ignore-field", action="append", default=[], metavar="NAME",
                   help="pass over an unknown field of the file's config; may be repeated")
    p.add_argument("--json", action="store_true", help="print what was read as JSON")
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    try:
        from symboliclight.interop.importer import import_released
    except ImportError as error:
        raise InputError("importing a checkpoint needs PyTorch: pip install 'symboliclight[train]'") from error
    total = 2 * args.file.stat().st_size if args.file.is_file() else None  # hashed, then copied
    with byte_progress("importing", total) as on_bytes:
        done = import_released(args.file, args.out, args.tokenizer, args.sha256, args.ignore_field, on_bytes)
    if args.json:
        print_json(asdict(done))
        return
    known = f"the published {done.published}" if done.published else "not in the list of published hashes"
    text = f"{done.pieces:,} pieces" if done.pieces else "no tokenizer: logits only"
    print(f"{args.out}: {done.parameters:,} parameters, {text}\nSHA-256 {done.sha256}: {known}")
