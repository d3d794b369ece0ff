"""`symboliclight export`: a checkpoint for the torch-free runtime, without its optimiser, or in a format of others."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from symboliclight.commands.models import add_model, token_progress
from symboliclight.commands.output import print_json, print_table
from symboliclight.core import checkpoint
from symboliclight.core.errors import InputError
from symboliclight.engine.pack import PRECISIONS
from symboliclight.generate.runner import load_model, load_weights

DIALECTS = ("nir", "snntorch", "norse", "spikingjelly", "sinabs")


def add(commands: Any) -> None:
    """Add the parser."""
    p = commands.add_parser("export", help="convert a checkpoint for the torch-free runtime, ONNX, transformers or NIR")
    add_model(p)
    p.add_argument("--out", type=Path, metavar="PATH", required=True,
                   help="folder to write, of onnx a file; a model there is replaced")
    p.add_argument("--format", choices=FORMATS, default="runtime",
                   help="runtime: a folder for the torch-free runtime; checkpoint: the weights of a run without its "
                        "optimiser, in --precision float32 or bfloat16, for every command that takes a model; onnx: "
                        "one step in float32, its state as inputs and outputs; transformers: a folder for "
                        "from_pretrained; nir: a folder of graphs for neuromorphic tools, with what they cannot hold "
                        "as host nodes (default: runtime)")
    p.add_argument("--target", choices=("hybrid", "decay-only"), default="hybrid",
                   help="of --format nir: graphs and host nodes, or one graph behind the table of input currents, "
                        "refused for a model that needs other host nodes (default: hybrid)")
    p.add_argument("--dialect", choices=DIALECTS, default="nir",
                   help="of --format nir: the package whose reader the graphs are for (default: nir, the format's own "
                        "meaning)")
    p.add_argument("--parts", metavar="NAMES",
                   help="of --format nir: only these graphs, comma-separated, by name or kind, such as encoder or ffn")
    p.add_argument("--evaluation", metavar="FILE",
                   help="for the model card of --format transformers: what `symboliclight eval --out` wrote")
    p.add_argument("--precision", choices=PRECISIONS, default="int8",
                   help="how weights are stored; certified: float32, and 8-bit sketches that spare reading most of it, "
                        "certified-bfloat16: bfloat16 and such sketches; "
                        "under int4 spike-fed matrices and the prior keep 8 bits (default: int8)")
    p.add_argument("--mean", type=int, metavar="N",
                   help="of checkpoint: the mean of the weights of the newest N checkpoints of a run, which "
                        "`train.keep` kept")
    p.add_argument("--calibrate", metavar="TEXT",
                   help="of int4: a text, or a folder of texts, by whose inputs weights are rounded; or none: each to "
                        "its nearest level, without PyTorch (default: the embedded demo corpus)")
    p.add_argument("--data", metavar="DIR",
                   help="token shards: also report perplexity, differing spikes and top-1 agreement beside float32, by "
                        "domain, and write them to quality.json in the folder; of nir: how often the clamp acts")
    p.add_argument("--json", action="store_true", help="print sizes in bytes as JSON")
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.mean is not None and args.format != "checkpoint":
        raise InputError(f"--mean goes with --format checkpoint, not {args.format}; export the checkpoint it writes")
    FORMATS[args.format](args)


def _checkpoint(args: argparse.Namespace) -> None:
    import torch

    from symboliclight.train.folder import mean_of_newest

    if args.precision not in ("float32", "bfloat16"):
        raise InputError(f"--format checkpoint stores float32 or bfloat16, got {args.precision}; give --precision")
    model, tokenizer = load_weights(args.model)
    weights = model.state_dict()
    if args.mean is not None:
        weights = mean_of_newest(Path(args.model), args.mean)
    dtype = getattr(torch, args.precision)
    tensors = {name: x.to(dtype) if x.dtype == torch.float32 else x for name, x in weights.items()}
    checkpoint.save(args.out, model.config, tensors, tokenizer, turns=checkpoint.has_turns(args.model))
    size = checkpoint.weight_bytes(args.out)
    if args.json:
        print_json({"format": "checkpoint", "precision": args.precision, "bytes": size})
    else:
        print(f"{args.out}: weights in {args.precision}, {size / 1e6:.1f} MB")


def _onnx(args: argparse.Namespace) -> None:
    model, _ = load_weights(args.model)
    from symboliclight.interop.onnx import export_onnx  # needs torch, which load_weights has asked for

    with Console(stderr=True).status("tracing one step and writing it"):
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


def _nir(args: argparse.Namespace) -> None:
    from symboliclight.interop.nir import build, dialects, files

    model, tokenizer = load_weights(args.model)
    export = build.build(model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    if args.target == "decay-only":
        export = build.single(export)
    if args.data:
        _clamp_share(args, export)
    if args.dialect != "nir" or args.parts:
        export = dialects.rewrite(export, args.dialect, args.parts.split(",") if args.parts else None)
    export.about["weights"] = files.digest(args.model)
    with Console(stderr=True).status("writing graphs"):
        size = files.write(args.out, export, tokenizer)
    found = {"format": "nir", "bytes": size, "graphs": len(export.parts), "host_nodes": [h.name for h in export.hosts]}
    if args.json:
        print_json(found)
        return
    print(f"{args.out}: {len(export.parts)} graphs, {len(export.hosts)} host nodes, {size / 1e6:.1f} MB")
    for kind in dict.fromkeys(h.kind for h in export.hosts):
        print(f"  on the host, {kind}: {', '.join(h.name for h in export.hosts if h.kind == kind)}")


def _clamp_share(args: argparse.Namespace, export: Any) -> None:
    """Note in the manifest how often the membrane's lower bound acts on the test text of --data."""
    from symboliclight.core.tokenizer import Tokenizer
    from symboliclight.data.shards import Shards
    from symboliclight.interop.nir.executor import clamp_share
    from symboliclight.measure.quality import windows_of

    windows = windows_of(Shards.open(args.data), Tokenizer.load(checkpoint.locate(args.model)), "test", 256, 2048)
    rows = [row for found in windows.values() for tokens, _ in found for row in tokens]
    with token_progress("reading", sum(map(len, rows))) as advance:
        export.about["clamp"] = clamp_share(export, rows, advance)


def _runtime(args: argparse.Namespace) -> None:
    from symboliclight import engine

    engine.export(args.model, args.out, args.precision, _moments(args))
    before = checkpoint.weight_bytes(args.model)
    after = checkpoint.weight_bytes(args.out)
    quality = _report(args) if args.data else None
    if args.json:
        print_json({"precision": args.precision, "bytes_before": before, "bytes": after}
                   | ({} if quality is None else {"quality": quality}))
        return
    print(f"{args.out}: {args.precision}, {after / 1e6:.1f} MB instead of {before / 1e6:.1f} MB")
    if quality is not None:
        print_table(["beside float32", "perplexity", "change", "spikes that differ", "same next token"],
                    [[name, f"{d['perplexity']:.3f}", f"{d['perplexity_change']:+.2%}", f"{d['mismatch']['all']:.3%}",
                      f"{d['top1']:.2%}"] for name, d in quality.items()])


def _moments(args: argparse.Namespace) -> dict[str, Any]:
    """What weights of 4 bits are rounded by, found by reading text with the torch model."""
    if args.precision != "int4":
        if args.calibrate is not None:
            raise InputError(f"--calibrate goes with --precision int4, not {args.precision}; leave it out")
        return {}
    if args.calibrate == "none":
        return {}
    try:
        from symboliclight.measure import calibration
    except ImportError as error:
        raise InputError("int4 is rounded by what PyTorch computes from text: pip install 'symboliclight[train]', "
                         "or give --calibrate none") from error
    checkpoint.require_free(args.out)  # before a minute of reading
    model, tokenizer = load_model(args.model)
    windows = calibration.read_windows(tokenizer, args.calibrate)
    with token_progress("calibrating", windows.size) as advance:
        return calibration.moments(model.eval(), windows, advance)


def _report(args: argparse.Namespace) -> dict[str, Any]:
    """Figures by domain of the exported folder, beside the float32 of its checkpoint."""
    from symboliclight import engine
    from symboliclight.core.provenance import write_result
    from symboliclight.core.tokenizer import Tokenizer
    from symboliclight.data.shards import Shards
    from symboliclight.measure.quality import compare, windows_of

    shards, exact, exported = Shards.open(args.data), engine.load(args.model, "float32"), engine.load(args.out)
    windows = windows_of(shards, Tokenizer.load(args.out), "test", min(256, exact.config.max_seq_len), 8192)
    total = sum(targets.size for found in windows.values() for _, targets in found)
    with token_progress("evaluating", total) as advance:
        found = compare(exact, {"exported": exported}, windows, advance)["exported"]
    about = {"precision": args.precision, "data_hash": shards.data_hash}
    write_result(args.out / "quality.json", about | {"domains": found})
    return found


FORMATS = {"runtime": _runtime, "checkpoint": _checkpoint, "onnx": _onnx, "transformers": _transformers, "nir": _nir}
