"""`symboliclight neuro readers`: the exported graphs in snnTorch, Norse, spikingjelly and sinabs, spike by spike."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from symboliclight.commands.models import add_model, token_progress
from symboliclight.commands.neuro_run import add_texts, texts_of
from symboliclight.commands.output import print_json, print_table
from symboliclight.core import checkpoint
from symboliclight.core.config import to_dict
from symboliclight.core.errors import InputError
from symboliclight.core.provenance import write_result
from symboliclight.generate.runner import load_weights


def add(commands: Any) -> None:
    """Add the parser."""
    p = commands.add_parser("readers", help="compare spike trains of other packages' NIR readers with the files' own")
    add_model(p)
    add_texts(p)
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the JSON to FILE")
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from symboliclight.interop.nir import build, files, readers

    model, _ = load_weights(args.model)
    export = build.build(model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    texts = texts_of(args, str(checkpoint.locate(args.model)))
    found = [readers.signals(export, tokens) for tokens in texts.values()]
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    versions = readers.versions()
    present = [name for name in readers.DIALECTS if versions[name]]
    with tempfile.TemporaryDirectory() as folder, token_progress("graphs", len(present) * len(export.parts)) as advance:
        for reader in present:
            for name, part in export.parts.items():
                inputs = np.concatenate([one[next(iter(part.reads.values()))] for one in found])
                try:
                    rows += readers.compare_part(reader, export, name, inputs, Path(folder) / "part")
                except InputError as error:
                    refused.append({"reader": reader, "part": name, "reason": str(error)})
                advance(1)
    result = {"model": to_dict(model.config), "weights": files.digest(args.model), "versions": versions,
              "tokens": {name: len(tokens) for name, tokens in texts.items()}, "readers": rows, "refused": refused,
              "unclamped": readers.unclamped(export, found)}
    if args.out is not None:
        write_result(args.out, result)
    if args.json:
        print_json(result)
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    print_table(["reader", "node", "held as", "values", "spikes", "differ", "as loaded", "at the boundary"],
                [[r["reader"], r["node"], r["held_as"], r["values"], r.get("spikes", ""), r.get("differ", ""),
                  r.get("as_loaded", ""), r.get("boundary", "")] for r in result["readers"]])
    print("{differ:,} of {values:,} encoder spikes are not the model's in any graph, which has no clamp"
          .format_map(result["unclamped"]))
    for name, version in result["versions"].items():
        if version is None:
            print(f"{name} is not installed")
    for row in result["refused"]:
        print(row["reason"])
