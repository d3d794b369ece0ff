"""`symboliclight tokenizer`: train one, measure it, use it."""

import argparse
import sys
from pathlib import Path
from typing import Any

from symboliclight.commands.output import byte_progress, print_json, print_table
from symboliclight.commands.streams import print_bytes, utf8_text
from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer, train
from symboliclight.data.corpus import SPLITS, Corpus
from symboliclight.data.sample import balanced_sample


def add(commands: Any) -> None:
    """Add the parsers."""
    top = commands.add_parser("tokenizer", help="train a tokenizer, measure it, encode and decode")
    actions = top.add_subparsers(metavar="ACTION", required=True)
    make = actions.add_parser("train", help="train SentencePiece BPE on equal bytes of Chinese and other text")
    make.add_argument("corpus", metavar="CORPUS", help="a folder written by `corpus build`; its training split is used")
    make.add_argument("--vocab-size", type=int, required=True, metavar="N", help="pieces, the fixed ones included")
    make.add_argument("--out", required=True, metavar="FILE", help="the .model file to write")
    make.add_argument("--sample-bytes", type=int, default=50_000_000, metavar="N",
                      help="UTF-8 bytes of text to train on at most (default: 50000000)")
    make.add_argument("--coverage", type=float, default=0.9999, metavar="F",
                      help="share of the characters that get pieces of their own, if they fit (default: 0.9999)")
    make.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of documents (default: 0)")
    make.add_argument("--replace", action="store_true", help="replace an earlier file at --out")
    make.set_defaults(run=_run_train)
    report = actions.add_parser("report", help="bytes per token of every domain")
    report.add_argument("corpus", metavar="CORPUS", help="a folder written by `corpus build`")
    report.add_argument("--split", choices=SPLITS, default="validation", help="what to measure (default: validation)")
    report.set_defaults(run=_run_report)
    encode = actions.add_parser("encode", help="print the ids of a text")
    encode.add_argument("text", nargs="?", metavar="TEXT", help="the text (default: standard input)")
    encode.add_argument("--bos", action="store_true", help="begin with the id that starts a document")
    encode.add_argument("--eos", action="store_true", help="end with the id that ends a document")
    encode.set_defaults(run=_run_encode)
    decode = actions.add_parser("decode", help="print the text of ids")
    decode.add_argument("ids", nargs="*", metavar="ID", help="token ids (default: standard input)")
    decode.set_defaults(run=_run_decode)
    for parser in (report, encode, decode):
        parser.add_argument("--tokenizer", required=True, metavar="FILE", help="a SentencePiece .model, or its folder")
    for parser in (make, report, encode, decode):
        parser.add_argument("--json", action="store_true", help="print JSON")


def _run_train(args: argparse.Namespace) -> None:
    if Path(args.out).exists() and not args.replace:
        raise InputError(f"{args.out} exists already; choose another --out, or add --replace to train it again")
    if args.sample_bytes < 1 or args.seed < 0 or not 0 < args.coverage <= 1:
        raise InputError("--sample-bytes must be positive, --seed not negative, --coverage above 0 and at most 1")
    corpus = Corpus(args.corpus)
    total = sum(corpus.counts(domain, "train")["bytes"] for domain in corpus.domains)
    with byte_progress("sampling", total) as on_bytes:
        sample = balanced_sample(corpus, args.sample_bytes, args.seed, on_bytes)
    with byte_progress("training", None):
        made = train(sample.texts(), args.vocab_size, args.out, args.coverage)
    figures = {"vocab_size": made.tokenizer.vocab_size, "hash": made.tokenizer.hash, "characters": made.characters,
               "coverage": made.coverage, "wanted_coverage": made.wanted_coverage, "sample_bytes": sample.bytes}
    if args.json:
        print_json(figures)
        return
    print(f"{args.out}: {made.tokenizer.vocab_size:,} pieces from {sample.bytes['chinese']:,} bytes of Chinese and "
          f"{sample.bytes['other']:,} bytes of other text, hash {made.tokenizer.hash[:12]}")
    print(f"{made.characters:,} characters have pieces of their own, {100 * made.coverage:.2f}% of the text")
    if made.coverage < made.wanted_coverage:
        print(f"note: {100 * made.wanted_coverage:.2f}% do not fit into this vocabulary; the rest is spelt in bytes")


def _run_report(args: argparse.Namespace) -> None:
    corpus, tokenizer = Corpus(args.corpus), Tokenizer.load(args.tokenizer)
    total = sum(corpus.counts(domain, args.split)["bytes"] for domain in corpus.domains)
    domains: dict[str, dict[str, int]] = {}
    with byte_progress("tokenising", total) as on_bytes:
        for name in corpus.domains:
            domains[name] = {"bytes": 0, "tokens": 0}
            for text in corpus.documents(name, args.split):
                size = len(text.encode())
                domains[name]["bytes"] += size
                domains[name]["tokens"] += len(tokenizer.encode(text))
                on_bytes(size)
    domains["total"] = {key: sum(counts[key] for counts in domains.values()) for key in ("bytes", "tokens")}
    ratios = {name: c["bytes"] / c["tokens"] if c["tokens"] else None for name, c in domains.items()}
    if args.json:
        print_json({"split": args.split, "vocab_size": tokenizer.vocab_size, "hash": tokenizer.hash,
                    "exact": tokenizer.exact,
                    "domains": {name: {**c, "bytes_per_token": ratios[name]} for name, c in domains.items()}})
        return
    print_table([args.split, "bytes", "tokens", "bytes/token"],
                [[name, *c.values(), "-" if ratios[name] is None else f"{ratios[name]:.3f}"]
                 for name, c in domains.items()])


def _run_encode(args: argparse.Namespace) -> None:
    text = _stdin() if args.text is None else utf8_text(args.text)
    ids = Tokenizer.load(args.tokenizer).encode(text, args.bos, args.eos)
    if args.json:
        print_json({"ids": ids})
    else:
        print(*ids)


def _run_decode(args: argparse.Namespace) -> None:
    words = args.ids or _stdin().split()
    wrong = [word for word in words if not (word.isascii() and word.isdigit())]
    if wrong:
        raise InputError(f"token id {wrong[0]!r} is not a whole number; give ids separated by spaces")
    tokenizer, ids = Tokenizer.load(args.tokenizer), [int(word) for word in words]
    if args.json:
        print_json({"text": tokenizer.decode(ids)})
    else:  # a pipe gets the exact text, also half a character
        print_bytes(tokenizer.decode_bytes(ids) + b"\n" * sys.stdout.isatty())


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 (byte {error.start}); convert it first") from error
