"""`symboliclight eval`: perplexity, bits per byte and sparsity of a model, benchmarks, and tasks of the harness."""

import argparse
import json
from pathlib import Path
from typing import Any

from symboliclight.commands.measures import add_measures, check_measures, print_measure, run_measure
from symboliclight.commands.models import add_device, add_model, read_text, token_progress
from symboliclight.commands.operations import counted, print_operations
from symboliclight.commands.output import print_json, print_table
from symboliclight.commands.tasks import add_tasks, asks_for_tasks, print_tasks, run_tasks
from symboliclight.core.atomic import write_atomic
from symboliclight.core.checkpoint import locate
from symboliclight.core.errors import InputError
from symboliclight.data.corpus import SPLITS
from symboliclight.data.shards import Shards
from symboliclight.generate.runner import load_model


def add(commands: Any) -> None:
    """Add the parser."""
    p = commands.add_parser("eval", help="measure perplexity, bits per byte and sparsity, or run benchmarks")
    add_model(p)
    add_device(p)
    p.add_argument("--data", metavar="DIR", help="a shard folder, made with the model's tokenizer")
    p.add_argument("--text", metavar="FILE", help="a UTF-8 text file, instead of --data")
    p.add_argument("--split", choices=SPLITS, default="validation", help="of the shards (default: validation)")
    p.add_argument("--max-tokens", type=int, default=65_536, metavar="N",
                   help="tokens of each domain at most; of --text all are read (default: 65536)")
    p.add_argument("--seq-len", type=int, metavar="N",
                   help="tokens of a window, which starts without memory (default: the model's max_seq_len)")
    add_measures(p)
    add_tasks(p)
    p.add_argument("--operations", action="store_true",
                   help="count operations a token by part as well, by NeuroBench's rule")
    p.add_argument("--json", action="store_true", help="print JSON, with sparsity by domain and position as well")
    p.add_argument("--out", metavar="FILE", help="write the JSON to a file too")
    p.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    """1 after Ctrl-C, with the figures of what was done."""
    measure = args.pairs is not None or args.cloze is not None or args.words is not None
    tasks = not measure and asks_for_tasks(args)
    _check(args, measure, tasks)
    figures = run_measure if measure else run_tasks if tasks else _perplexity
    result = {"model": str(args.model), "seed": _training_seed(args.model), **figures(args)}
    if args.out is not None:
        _save(args.out, result)
    if args.json:
        print_json(result)
    elif measure:
        print_measure(result)
    elif tasks:
        print_tasks(result)
    else:
        _print_tables(result)
        if args.operations:
            print_operations(result["operations"])
    return int(measure and result["partial"])


def _check(args: argparse.Namespace, measure: bool, tasks: bool) -> None:
    """Raise `InputError` for options that are wrong or do not go together."""
    given = [args.data, args.text, args.pairs, args.cloze, args.words, args.tasks if measure else None,
             args.wikitext if measure else None]
    if sum(one is not None for one in given) + tasks != 1:
        raise InputError("give either --data DIR or --text FILE, or --tasks NAMES, --pairs, --cloze or --words")
    if (tasks or measure) and args.operations:
        raise InputError("--operations counts what --data or --text reads; leave it out beside --tasks and the like")
    if tasks and args.device != "cpu":
        raise InputError("--device goes with --data, --text and benchmarks; tasks run on the CPU")
    for name in ("max_tokens", "seq_len"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be positive, got {getattr(args, name)}")
    if args.threads is not None and not measure:
        raise InputError("--threads goes with --pairs, --cloze and --words")
    check_measures(args, measure)


def _perplexity(args: argparse.Namespace) -> dict[str, Any]:
    """Figures on shards or a text."""
    model, tokenizer = load_model(args.model, args.device)
    from symboliclight.measure.evaluate import evaluate, evaluate_text  # needs torch, which load_model has asked for

    if args.text is not None:
        text = read_text(args.text)
        with counted(model, args.operations) as operations, \
                token_progress("evaluating", len(tokenizer.encode(text))) as advance:
            result = evaluate_text(model, tokenizer, text, args.seq_len, advance)
    else:
        shards = Shards.open(args.data)
        counts = shards.splits[args.split].values()
        with counted(model, args.operations) as operations, \
                token_progress("evaluating", sum(min(args.max_tokens, d["tokens"]) for d in counts)) as advance:
            result = evaluate(model, tokenizer, shards, args.split, args.max_tokens, args.seq_len, advance)
    return {**result, **operations}


def _training_seed(directory: str) -> int | None:
    """The seed of the run that the model comes from, if it still lies in the folder of its run."""
    run = locate(directory).parent / "run.json"
    return json.loads(run.read_text(encoding="utf-8")).get("seed") if run.is_file() else None


def _save(path: str, result: dict[str, Any]) -> None:
    try:
        write_atomic(Path(path), (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def _print_tables(result: dict[str, Any]) -> None:
    rows = {**result["domains"], "all tokens": result["mean"]["token_weighted"],
            "mean over domains": result["mean"]["unweighted"],
            **{f"language {name}": figures for name, figures in result["languages"].items()}}
    print_table(
        ("domain", "tokens", "bytes/token", "nats/token", "perplexity", "bits/byte"),
        [(name, r.get("tokens", ""), _number(r.get("bytes_per_token"), 2), _number(r["nats_per_token"], 3),
          _number(r["perplexity"], 2), _number(r["bits_per_byte"], 3)) for name, r in rows.items()])
    sparsity = result["sparsity"]
    if not sparsity["sites"]:
        return
    languages = sparsity["languages"]
    print()
    print_table(
        ("silent at", "all", *languages, "first token", "gate opened"),
        [(site, _percent(silent), *(_percent(languages[name].get(site)) for name in languages),
          _percent(sparsity["positions"][0]["sites"][site]), _percent(_gate(sparsity, site)))
         for site, silent in sparsity["sites"].items()])


def _gate(sparsity: dict[str, Any], site: str) -> float | None:
    """Share of tokens for which the site opens the gate of the next layer."""
    layer = 0 if site == "encoder" else int(site.split(".")[1]) + 1 if site.startswith("blocks") else -1
    return sparsity["gate_open"].get(str(layer))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"
