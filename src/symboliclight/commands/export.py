"""`symboliclight export`: a checkpoint for the torch-free runtime, or in a format of others."""

import argparse
from pathlib import Path
from typing import Any

from symboliclight.commands.models import add_model
from symboliclight.commands.output import print_json
from symboliclight.engine.pack import PRECISIONS
from symboliclight.errors import InputError
from symboliclight.runner import load_weights


def add(commands: Any) -> None:
    """Add the parser."""
    p = commands.add_parser("export", help="convert a checkpoint for the torch-free runtime, ONNX or transformers")
    add_model(p)
    p.add_argument("--out", type=Path, metavar="PATH", required=True,
                   help="folder to write, of onnx a file; a model there is replaced")
    p.add_argument("--format", choices=FORMATS, default="runtime",
                   help="runtime: a folder for the torch-free runtime; onnx: one step in float32, its state as inputs "
                        "and outputs; transformers: a folder for from_pretrained (default: runtime)")
    p.add_argument("--evaluation", metavar="FILE",
                   help="for the model card of --format transformers: what `symboliclight eval --out` wrote")
    p.add_argument("--precision", choices=PRECISIONS, default="int8",
                   help="weights in 32, 16, 8 or 4 bits; spike-fed matrices keep 8 under int4 (default: int8)")
    p.add_argument("--json", action="store_true", help="print sizes in bytes as JSON")
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    FORMATS[args.format](args)


def _onnx(args: argparse.Namespace) -> None:
    model, _ = load_weights(args.model)
    from symboliclight.interop.onnx import export_onnx  # needs torch, which load_weights has asked for

    size = export_onnx(model, args.out)
    if args.json:
        print_json({"format": "onnx", "bytes": size})
    else:
        print(f"{args.out}: one step in float32, {size / 1e6:.1f} MB")


def _transformers(args: argparse.Namespace) -> None:
    try:
        from symboliclight.interop.transformers.export import export
    except ImportError as error:
        raise InputError("--format transformers needs torch and transformers: "
                         "pip install 'symboliclight[train]'") from error
    export(args.model, args.out, args.evaluation)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    if args.json:
        print_json({"format": "transformers", "bytes": size})
    else:
        print(f"{args.out}: {size / 1e6:.1f} MB, for AutoModelForCausalLM.from_pretrained")


def _runtime(args: argparse.Namespace) -> None:
    from symboliclight import checkpoint, engine

    engine.export(args.model, args.out, args.precision)
    before = (checkpoint.locate(args.model) / checkpoint.MODEL).stat().st_size
    after = (args.out / checkpoint.MODEL).stat().st_size
    if args.json:
        print_json({"precision": args.precision, "bytes_before": before, "bytes": after})
    else:
        print(f"{args.out}: {args.precision}, {after / 1e6:.1f} MB instead of {before / 1e6:.1f} MB")


FORMATS = {"runtime": _runtime, "onnx": _onnx, "transformers": _transformers}
