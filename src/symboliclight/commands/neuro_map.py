"""`symboliclight neuro map`: what of a model would fit on neuromorphic hardware, by published limits."""

import argparse
import copy
from pathlib import Path
from typing import Any

from symboliclight.commands.models import label_of, token_progress
from symboliclight.commands.output import print_json, print_table
from symboliclight.core.config import ModelConfig, preset
from symboliclight.core.errors import InputError
from symboliclight.data.corpus import SPLITS
from symboliclight.data.shards import Shards
from symboliclight.generate.runner import load_weights
from symboliclight.interop.hardware import TARGETS
from symboliclight.interop.hardware_tables import kind_of, placed_table, precision_table


def add(commands: Any) -> None:
    """Add the parser."""
    p = commands.add_parser("map", help="cores, neurons, synapses and precision against the published limits of a chip")
    a = p.add_argument
    a("--target", action="append", required=True, choices=TARGETS, help="the chip; may be given again")
    a("--model", metavar="DIR", help="a checkpoint, or the folder of a run")
    a("--preset", metavar="NAME", help="a shape without weights, instead of --model")
    a("--data", metavar="DIR", help="token shards: also what the target's weight precision costs in perplexity")
    a("--split", choices=SPLITS, default="test", help="of the shards (default: test)")
    a("--max-tokens", type=int, default=4096, metavar="N", help="tokens of each domain at most (default: 4096)")
    a("--json", action="store_true", help="print JSON, with every limit and its source")
    a("--out", type=Path, metavar="FILE", help="write the JSON to FILE")
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if (args.model is None) == (args.preset is None):
        raise InputError("give either --model DIR or --preset NAME")
    if args.data is not None and args.model is None:
        raise InputError("--data measures a trained model: give --model DIR instead of --preset")
    if args.max_tokens < 1:
        raise InputError(f"--max-tokens must be positive, got {args.max_tokens}")
    model, tokenizer = (None, None) if args.model is None else load_weights(args.model)
    config: ModelConfig = preset(args.preset) if model is None else model.config
    try:
        from symboliclight.interop.mapping import fit
    except ImportError as error:
        raise InputError("neuro map needs PyTorch: pip install 'symboliclight[train]'") from error
    result: dict[str, Any] = {"model": args.preset or label_of(args.model), "claim": CLAIM,
                              "targets": [fit(config, TARGETS[name]) for name in dict.fromkeys(args.target)]}
    if args.data is not None:
        if tokenizer is None:
            raise InputError(f"{args.model} has no tokenizer.model, so it reads no shards; restore it")
        result["perplexity"] = _perplexity(args, model, tokenizer)
    if args.out is not None:
        _save(args.out, result)
    if args.json:
        print_json(result)
    else:
        for found in result["targets"]:
            _print(found)
        _print_perplexity(result)
        print(CLAIM)


CLAIM = "By published limits and capacity alone. Nothing here has run on hardware."


def _perplexity(args: argparse.Namespace, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Perplexity with float32 weights, and with the mapped matrices as each target would store them."""
    from symboliclight.interop.mapping import quantise
    from symboliclight.measure.evaluate import evaluate

    shards = Shards.open(args.data)
    names = list(dict.fromkeys(args.target))
    each = sum(min(args.max_tokens, d["tokens"]) for d in shards.splits[args.split].values())
    rows = []
    with token_progress("evaluating", each * (1 + len(names))) as advance:
        for name in (None, *names):
            rounded, changed = copy.deepcopy(model), []
            if name is not None:
                changed = quantise(rounded, model.config, TARGETS[name])
            found = evaluate(rounded, tokenizer, shards, args.split, args.max_tokens, None, advance)
            rows.append({"weights": "float32" if name is None else name, "matrices": len(changed),
                         "bits": 32 if name is None else TARGETS[name].weight_bits.value,
                         "perplexity": found["mean"]["token_weighted"]["perplexity"],
                         "domains": {d: x["perplexity"] for d, x in found["domains"].items()}})
    for row in rows:
        row["change"] = row["perplexity"] / rows[0]["perplexity"] - 1
    return {"data_hash": shards.data_hash, "split": args.split, "max_tokens": args.max_tokens, "rows": rows}


def _print(found: dict[str, Any]) -> None:
    totals = found["totals"]
    print(f"{found['title']}: by capacity {totals['fit']} of {totals['matrices']} spike-fed matrices fit, "
          f"{totals['share_of_weights']:.0%} of all matrix weights")
    print_table(*placed_table(found))
    chips = f"{totals['chips']:,} chip{'s' * (totals['chips'] != 1)}"
    print(f"together {totals['cores']:,} cores, {chips}; events come and sums leave {totals['turns']} times a token")
    print(f"sums leave by {totals['readout']}" if totals["readout"] else
          "sums cannot leave: its cores send spikes only, and the model adds sums to a continuous stream")
    for note in dict.fromkeys(f"{kind_of(p['name'])}: {note}" for p in found["placed"] for note in p["notes"]):
        print(note)
    print()
    print_table(("not placed", "where", "why"), [tuple(e.values()) for e in found["elsewhere"]])
    print()
    for name, limit in found["limits"].items():
        print(f"limit {name.replace('_', ' ')}: {_value(limit)}" + (f"; {limit['source']}" if limit["source"] else ""))
    print()


def _value(limit: dict[str, Any]) -> str:
    value = limit["value"]
    values = value if isinstance(value, list) else [] if value is None else [value]
    shown = ", ".join(v if isinstance(v, str) else f"{v:,}" for v in values) or "unknown"
    return f"{shown} ({limit['note']})" if limit["note"] else shown


def _print_perplexity(result: dict[str, Any]) -> None:
    if "perplexity" in result:
        print_table(*precision_table(result))


def _save(path: Path, result: dict[str, Any]) -> None:
    from symboliclight.core.provenance import write_result

    try:
        write_result(path, result)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error
