"""`symboliclight eval --pairs`, `--cloze` and `--words`: benchmarks that are read from their own files."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from symboliclight.commands.models import add_threads, read_text, token_progress
from symboliclight.commands.output import print_table
from symboliclight.core.atomic import write_atomic
from symboliclight.core.errors import InputError
from symboliclight.core.provenance import commit
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.generate.runner import load_model, load_runner
from symboliclight.measure import cloze, pairs, words

Measure = Callable[[Any, Tokenizer], dict[str, Any]]


def add_measures(parser: argparse.ArgumentParser) -> None:
    """Add their options."""
    a = parser.add_argument
    a("--pairs", nargs="+", metavar="FILE",
      help="minimal pairs, instead of --data: jsonl files as of BLiMP, ZhoBLiMP or SLING, or folders of them")
    a("--cloze", nargs="+", metavar="FILE",
      help="last words of LAMBADA, or questions with choices of PIQA or C3, instead of --data")
    a("--words", metavar="FILE",
      help="a tokenised corpus such as WikiText or Penn Treebank, instead of --data: perplexity per word, with the "
           "state carried across the whole file")
    a("--windows", type=int, metavar="N", help="with --words: also in windows of N tokens, which start without memory")
    a("--chart", metavar="FILE", help="with --pairs: draw a bar for each phenomenon into FILE.svg or FILE.png")
    add_threads(parser)


def check_measures(args: argparse.Namespace, wanted: bool) -> None:
    """Raise `InputError` for options that go with others than were given."""
    if args.windows is not None and args.words is None:
        raise InputError("--windows goes with --words; use --seq-len beside --data and --text")
    if args.windows is not None and args.windows < 1:
        raise InputError(f"--windows must be positive, got {args.windows}")
    if args.chart is not None and args.pairs is None:
        raise InputError("--chart draws what --pairs found; leave it out, or give --pairs FILE")
    if args.chart is not None and Path(args.chart).suffix not in (".svg", ".png"):
        raise InputError(f"--chart {args.chart} must end with .svg or .png")
    if wanted and args.limit is not None and args.limit < 1:
        raise InputError(f"--limit must be positive, got {args.limit}")
    if args.words is not None and args.limit is not None:
        raise InputError("--limit takes a sample of pairs, questions or documents; --words reads the whole file")
    if args.seq_len is not None and (args.pairs is not None or args.words is not None):
        raise InputError("--seq-len goes with --data, --text, --tasks and --cloze; beside --words it is --windows")


def run_measure(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of the one that was asked for: {kind, precision, tokenizer_hash, ...}."""
    kind, measured = next((name, run) for name, run in
                          (("pairs", _pairs), ("cloze", _cloze), ("words", _words)) if getattr(args, name) is not None)
    measure = measured(args)  # files first: what is wrong with them is said before a model is loaded
    if args.device != "cpu" and args.precision is None:  # not the recorded steps of load_runner: nothing is written
        model, tokenizer = load_model(args.model, args.device)
    else:
        model, tokenizer = load_runner(args.model, args.precision, args.threads, args.device)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise InputError(f"the tokenizer has {tokenizer.vocab_size} pieces, the model only {model.config.vocab_size}; "
                         "use the tokenizer.model that the model was trained with")
    found = measure(model, tokenizer)
    if args.chart is not None:
        from symboliclight.show.plots import plot_pairs

        _write(args.chart, plot_pairs(found, Path(args.chart).suffix[1:]))
    return {"kind": kind, "precision": getattr(model, "precision", "torch"), "tokenizer_hash": tokenizer.hash,
            "commit": commit(), **found}


def _pairs(args: argparse.Namespace) -> Measure:
    read = [pair for file in _files(args.pairs) for pair in pairs.parse(read_text(file), file)]
    equal = [pair.where for pair in read if pair.good == pair.bad]
    if equal:
        print(f"symboliclight: warning: {equal[0]} has two equal sentences, which no model tells apart; it counts half"
              f"{f', and so do {len(equal) - 1} more' if equal[1:] else ''}", file=sys.stderr)
    chosen = pairs.sample(read, args.limit)

    def measure(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
        with token_progress("scoring", len(chosen), "pairs") as advance:
            return {"limit": args.limit, **pairs.measure(model, tokenizer, chosen, advance)}
    return measure


def _files(paths: Sequence[str]) -> list[str]:
    """The files as they are, and of folders every jsonl inside."""
    found: list[str] = []
    for path in paths:
        inside = sorted(map(str, Path(path).rglob("*.jsonl"))) if Path(path).is_dir() else [path]
        if not inside:
            raise InputError(f"{path} has no .jsonl file; give a folder of minimal pairs, or the files")
        found += inside
    return list(dict.fromkeys(found))


def _cloze(args: argparse.Namespace) -> Measure:
    read = []
    for file in dict.fromkeys(args.cloze):
        labels = cloze.labels_file(file)
        read += cloze.parse(read_text(file), file, read_text(str(labels)) if labels.is_file() else None)
    chosen = cloze.sample(read, args.limit)

    def measure(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
        with token_progress("scoring", len(chosen), "questions") as advance:
            return {"limit": args.limit, **cloze.measure(model, tokenizer, chosen, args.seq_len, advance)}
    return measure


def _words(args: argparse.Namespace) -> Measure:
    text = read_text(args.words)

    def measure(model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
        ways = 1 if hasattr(model, "context_limit") else 1 + (args.windows is not None)
        with token_progress("reading", ways * len(tokenizer.encode(text))) as advance:
            return words.measure(model, tokenizer, text, args.words, args.windows, advance)
    return measure


def _write(path: str, data: bytes) -> None:
    try:
        write_atomic(path, data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another file") from error


def print_measure(found: dict[str, Any]) -> None:
    """Tables of what `run_measure` found."""
    {"pairs": _print_pairs, "cloze": _print_cloze, "words": _print_words}[found["kind"]](found)
    if found["partial"]:
        print("\nInterrupted: the figures are of the part that was done.")


def _print_pairs(found: dict[str, Any]) -> None:
    print_table(("paradigm", "phenomenon", "pairs", "accuracy", "95% interval"),
                [(name, row["phenomenon"], *_share(row)) for name, row in found["paradigms"].items()])
    rows = {**found["phenomena"], **{f"field {name}": row for name, row in found["fields"].items()},
            "all pairs": found["all"]}
    print()
    print_table(("phenomenon", "pairs", "accuracy", "95% interval"),
                [(name, *_share(row)) for name, row in rows.items()])
    print(f"mean over paradigms {found['mean_over_paradigms']:.2%}; ties, which count half: {found['ties']:,}")


def _print_cloze(found: dict[str, Any]) -> None:
    rows = []
    for name, row in found["files"].items():
        by_byte = row.get("by_byte")
        rows.append((name, *_share(row), *(_share(by_byte)[1:] if by_byte else ("", "")),
                     f"{row['chance']:.2%}" if by_byte else "", "" if by_byte else f"{row['perplexity']:,.2f}"))
    print_table(("file", "questions", "accuracy", "95% interval", "by byte", "95% interval", "chance", "perplexity"),
                rows)


def _print_words(found: dict[str, Any]) -> None:
    ways = {"state carried": found.get("carried"), f"windows of {found['window']} pieces": found.get("windows")}
    print_table(("", "words and <eos>", "perplexity per word", "without <eos>", "bits/byte"),
                [(way, row["tokens"], f"{row['perplexity']:,.2f}", f"{row['word_perplexity']:,.2f}",
                  f"{row['bits_per_byte']:.4f}") for way, row in ways.items() if row is not None])


def _share(row: dict[str, Any]) -> tuple[int, str, str]:
    """Count, accuracy and interval as a table shows them."""
    low, high = row["interval"]
    return row["count"], f"{row['accuracy']:.2%}", f"{low:.1%} to {high:.1%}"
