"""`symboliclight bench NAME`: measure on this machine and write results/bench-NAME.json."""

import argparse
import importlib
import importlib.util
import json
import re
import textwrap
from pathlib import Path

from symboliclight.commands.fields import parse
from symboliclight.commands.output import terminal_width
from symboliclight.core.errors import InputError
from symboliclight.core.processor import training_precision

BENCHMARKS = {
    "ops": "each native kernel against its torch form and loop",
    "train": "training steps and their memory beside GPT-2, and where the time of a step goes",
    "decode": "the torch-free runtime at every precision beside its dense path, torch and GPT-2",
    "llama": "the torch-free runtime beside llama.cpp on GPT-2 of as many bits; needs pip install '.[llama]'",
    "serve": "many clients of `symboliclight serve` at once beside one after another",
    "quality": "what each precision of the runtime costs a trained model; needs --model and --data",
    "gpu": "writing, reading and training on a CUDA device beside GPT-2; needs one",
    "model": "training step of mini beside GPT-2; forwards of v1-194m beside the reference forms",
}


def add(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("bench", help="measure speed on this machine, as ratios in one run")
    names = "; ".join(f"{name}: {text}" for name, text in BENCHMARKS.items())
    p.add_argument("name", choices=[*BENCHMARKS, "all"], help=names)
    p.add_argument("--out", type=Path, default=Path("results"), help="folder for bench-NAME.json (default: results)")
    p.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    p.add_argument("--precision", choices=["auto", "bfloat16", "float32"], default="auto",
                   help="for train, model and ops: of products; auto: bfloat16 where the processor multiplies it, else "
                   "float32 (default: auto). Name another --out to keep the results of both")
    p.add_argument("--quick", action="store_true", help="small shapes, to try the benchmark itself; not for quoting")
    p.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="fields",
                   help="for decode: a field of its model to change, e.g. model.spike_fed=true; may be repeated. The "
                   "model then also runs beside the unchanged one; name another --out to keep both results")
    p.add_argument("--model", metavar="DIR", help="for quality: a checkpoint, or the folder of a run")
    p.add_argument("--data", metavar="DIR", help="for quality: its token shards")
    p.add_argument("--json", action="store_true", help="print the result file instead of a table")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    try:
        import torch
    except ImportError as error:
        raise InputError("bench needs PyTorch: pip install 'symboliclight[bench]'") from error
    torch.set_num_threads(args.threads)
    trained = {"model": args.model, "data": args.data}
    if args.name == "quality" and not all(trained.values()):
        raise InputError("bench quality measures a trained model on text: give --model RUN and --data SHARDS")
    fields = parse(args.fields)
    if fields and (args.name != "decode" or not all(field.startswith("model.") for field in fields)):
        raise InputError("--set changes fields of the model of bench decode, as in --set model.spike_fed=true")
    precision = training_precision(args.precision)
    options = {**{name: {"precision": precision} for name in ("train", "model", "ops")}, "quality": trained,
               "decode": {"changes": {k.removeprefix("model."): v for k, v in fields.items()}}}
    possible = {"quality": args.model is not None, "gpu": torch.cuda.is_available(),
                "llama": importlib.util.find_spec("llama_cpp") is not None}
    for name in [n for n in BENCHMARKS if possible.get(n, True)] if args.name == "all" else [args.name]:
        module = importlib.import_module(f"symboliclight.benchmarks.{name}")
        path = module.run(args.out, quick=args.quick, **options.get(name, {}))
        result = json.loads(path.read_text(encoding="utf-8"))
        if args.json:
            print(json.dumps(result, indent=1))
        else:
            print_rows(name, result["rows"])
            print(f"written to {path}")


# What varies within a heading: precisions, ours and the peer's, and how much is silent.
_VARIES = re.compile(r",? *\b(?<!against )(certified-bfloat16|certified|float32|bfloat16|bf16|int8|int4|F32|BF16|F16"
                     r"|Q8_0|Q4_0|\d+% silent)(?![\w-])(?! in transformers)")


def grouped(rows: list[dict]) -> dict[tuple[str, str], list[tuple[str, dict]]]:
    """(heading, unit) -> (short label, row), in the order in which headings come first."""
    groups: dict[tuple[str, str], list[tuple[str, dict]]] = {}
    for row in rows:
        label = " ".join(dict.fromkeys(_VARIES.findall(row["name"])))
        heading = re.sub(" +", " ", _VARIES.sub("", row["name"])).strip(" ,")
        groups.setdefault((heading, row["unit"]), []).append((label, row))
    return groups


def print_rows(name: str, rows: list[dict]) -> None:
    """Rows under headings, so that 60 columns hold them."""
    width = int(min(terminal_width(), 100))
    print(textwrap.fill(f"bench {name}: check passed. What was measured, against what, their ratio, and what was asked "
                        "of it", width))
    figures = [f"{r[side]:.4g}" for r in rows for side in ("value", "against")]
    labels = max((len(label) for found in grouped(rows).values() for label, _ in found), default=0)
    number = max(map(len, figures), default=0)
    apart = "\n    " if labels + 2 * number + 36 > width else "  "
    for (heading, unit), found in grouped(rows).items():
        print("\n" + textwrap.fill(f"{heading}, {unit}", width))
        for label, r in found:
            missed = r["target"] is not None and r["ratio"] < r["target"]
            asked = "" if r["target"] is None else f"  >= {r['target']:.3g}{', missed' * missed}"
            measured = f"{r['value']:>{number}.4g} to {r['against']:<{number}.4g}"
            print(f"  {label:{labels}}{apart}{measured}  {r['ratio']:.3g}{asked}")
