"""`symboliclight export`: a checkpoint as a folder that the torch-free runtime maps as it is."""

import argparse
from pathlib import Path
from typing import Any

from symboliclight.commands.models import add_model
from symboliclight.commands.output import print_json
from symboliclight.engine.pack import PRECISIONS


def add(commands: Any) -> None:
    """Add the parser."""
    p = commands.add_parser("export", help="convert a checkpoint for the torch-free runtime")
    add_model(p)
    p.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder to write; a model there is replaced")
    p.add_argument("--precision", choices=PRECISIONS, default="int8",
                   help="weights in 32, 16, 8 or 4 bits; spike-fed matrices keep 8 under int4 (default: int8)")
    p.add_argument("--json", action="store_true", help="print sizes in bytes as JSON")
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from symboliclight import checkpoint, engine

    engine.export(args.model, args.out, args.precision)
    before = (checkpoint.locate(args.model) / checkpoint.MODEL).stat().st_size
    after = (args.out / checkpoint.MODEL).stat().st_size
    if args.json:
        print_json({"precision": args.precision, "bytes_before": before, "bytes": after})
    else:
        print(f"{args.out}: {args.precision}, {after / 1e6:.1f} MB instead of {before / 1e6:.1f} MB")
