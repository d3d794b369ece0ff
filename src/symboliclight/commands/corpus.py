"""`symboliclight corpus`: text files -> corpus -> token shards."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from symboliclight.commands.output import byte_progress, print_json, print_table
from symboliclight.core.atomic import remedy, write_atomic
from symboliclight.core.errors import InputError
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.data.corpus import (
    MANIFEST,
    SPLITS,
    Corpus,
    CorpusOptions,
    build_corpus,
    demo_sources,
    folder_sources,
)
from symboliclight.data.readers import ReadOptions, find_files
from symboliclight.data.recipe import read_recipe
from symboliclight.data.recipe_corpus import REASONS, build_recipe, recipe_report
from symboliclight.data.shards import Shards, build_shards

_BUILD = """
Sources are plain text and source code; .jsonl, .ndjson and .json (an array of records, or lines); .csv, .tsv and
.parquet, of which one column is read; all of these in .gz, .xz, .zst, .bz2 or .zip; folders, also of links, which are
searched for .txt .text .md .rst and the data formats (hidden files and README, SOURCES, LICENSE... are left out, and so
are JSON files and tables without the text field, which is said); and hf:ID[:CONFIG[:SPLIT]] for `datasets`. Files of
other kinds are refused, unless --as text reads them as they are. Text is UTF-8, or UTF-16 with a byte-order mark:
documents with invalid bytes are dropped and counted, because replaced characters would be learnt; a file without one
valid document, an empty or a binary file is refused. Exact duplicates are dropped over all domains.
Documents are assigned to train, validation and test by their SHA-256.
"""

_RECIPE = """
A recipe names for each domain a source file, how often each phase of training passes over it, and what is left out:
near-duplicates (MinHash), documents that quote evaluation sets, word lists, sizes, a cap. Lines marked as questions and
answers become turns. Every document that is removed is counted by its reason.
"""


def add(commands: Any) -> None:
    """Add the parsers."""
    top = commands.add_parser("corpus", help="build a corpus from text files, and token shards from a corpus")
    actions = top.add_subparsers(metavar="ACTION", required=True)
    build = actions.add_parser("build", help="clean, deduplicate and split text", description=_BUILD)
    build.add_argument("--source", action="append", default=[], metavar="NAME=PATH[,PATH...]",
                       help="a domain and its files, folders or hf: ids; may be repeated")
    build.add_argument("--source-dir", metavar="DIR", help="a folder in which each file is a domain of its own")
    build.add_argument("--text-field", default="text", metavar="FIELD",
                       help="field or column of records and tables that holds the text (default: text)")
    build.add_argument("--as", choices=("text",), dest="kind",
                       help="read files of kinds that are not known, .html for example, as plain text; of folders, all")
    build.add_argument("--whole-files", action="store_true",
                       help="text files: one document a file (default: documents are separated by blank lines)")
    build.add_argument("--min-bytes", type=int, default=1, metavar="N",
                       help="drop documents of fewer UTF-8 bytes (default: 1)")
    _build_options(build, 0.01)
    build.set_defaults(run=_run_build)
    demo = actions.add_parser("demo", help="build the embedded demo corpus: six domains, zh and en, 6.6 MB")
    _build_options(demo, 0.05)
    demo.set_defaults(run=_run_demo)
    recipe = actions.add_parser("recipe", help="build a corpus as a recipe file says", description=_RECIPE)
    recipe.add_argument("recipe", metavar="FILE", help="a recipe in TOML, such as recipes/simple.toml")
    recipe.add_argument("--sources", required=True, metavar="DIR", help="the folder that its paths begin in")
    recipe.add_argument("--report", metavar="FILE", help="write what was kept, and removed by reason, to this JSON")
    _out_options(recipe)
    recipe.set_defaults(run=_run_recipe)
    shards = actions.add_parser("shards", help="tokenise a corpus")
    shards.add_argument("corpus", metavar="CORPUS", help="a folder written by `corpus build`")
    shards.add_argument("--tokenizer", required=True, metavar="FILE", help="a SentencePiece .model, or its folder")
    shards.add_argument("--threads", type=int, metavar="N", help="threads (default: all cores)")
    shards.add_argument("--phase", metavar="NAME", help="of a corpus from a recipe: take the domains of this phase")
    _out_options(shards)
    shards.set_defaults(run=_run_shards)
    info = actions.add_parser("info", help="show what a corpus or shard folder holds")
    info.add_argument("directory", metavar="DIR", help="a folder written by `corpus build` or `corpus shards`")
    info.add_argument("--verify", action="store_true", help="read everything and compare hashes")
    info.add_argument("--json", action="store_true", help="print JSON instead of a table")
    info.set_defaults(run=_run_info)


def _build_options(parser: argparse.ArgumentParser, fraction: float) -> None:
    parser.add_argument("--validation", type=float, default=fraction, metavar="F",
                        help=f"fraction of the documents for validation (default: {fraction})")
    parser.add_argument("--test", type=float, default=fraction, metavar="F",
                        help=f"fraction of the documents for the test (default: {fraction})")
    _out_options(parser)


def _out_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write; appears whole or not at all")
    parser.add_argument("--replace", action="store_true", help="replace an earlier result in --out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _run_build(args: argparse.Namespace) -> None:
    sources: dict[str, list[str | Path]] = {}
    for source in args.source:
        name, equals, paths = source.partition("=")
        if not (name and equals and all(paths.split(","))):
            raise InputError(f"--source {source} must look like NAME=PATH or NAME=PATH,PATH")
        sources.setdefault(name, []).extend(paths.split(","))
    read = ReadOptions(args.text_field, args.whole_files, as_text=args.kind == "text")
    for name, files in (folder_sources(args.source_dir, read) if args.source_dir else {}).items():
        sources.setdefault(name, []).extend(files)
    _build(sources, args, min_bytes=args.min_bytes, read=read)


def _run_demo(args: argparse.Namespace) -> None:
    _build(demo_sources(), args, min_bytes=1, read=ReadOptions())


def _run_recipe(args: argparse.Namespace) -> None:
    recipe, folder = read_recipe(args.recipe), Path(args.sources)
    missing = [name for name in recipe.domains if not (folder / recipe.domains[name].source).is_file()]
    if missing:
        raise InputError(f"no file {folder / recipe.domains[missing[0]].source} for domain {missing[0]}; "
                         "check --sources and the recipe")
    total = sum((folder / domain.source).stat().st_size for domain in recipe.domains.values())
    with byte_progress("reading", total) as on_read:
        corpus = build_recipe(recipe, folder, args.out, ReadOptions(on_read=on_read), args.replace)
    if args.report:
        _write_report(args.report, recipe_report(corpus))
    if args.json:
        print_json(recipe_report(corpus))
    else:
        _show_recipe(corpus)


def _write_report(path: str, report: dict[str, Any]) -> None:
    try:
        write_atomic(path, json.dumps(report, indent=2).encode() + b"\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; the corpus is built, choose another --report "
                         f"({remedy(error)})") from error


def _show_recipe(corpus: Corpus) -> None:
    rows = [[name, domain["kept"], domain["bytes"], *domain["removed"].values()]
            for name, domain in recipe_report(corpus)["domains"].items()]
    rows.append(["total", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    print_table(["documents", "kept", "bytes", *(reason.replace("_", " ") for reason in REASONS)], rows)
    print(f"data hash {corpus.data_hash}")


def _build(sources: dict[str, list[str | Path]], args: argparse.Namespace, min_bytes: int, read: ReadOptions) -> None:
    paths = [path for group in sources.values() for path in group]
    remote = any(str(path).startswith("hf:") for path in paths)
    total = None if remote else sum(file.stat().st_size for path in paths for file in find_files(path, read))
    with byte_progress("reading", total) as on_read:
        options = CorpusOptions(args.validation, args.test, min_bytes, replace(read, on_read=on_read))
        corpus = build_corpus(sources, args.out, options, args.replace)
    _show_corpus(corpus, args.json)


def _run_shards(args: argparse.Namespace) -> None:
    corpus, tokenizer = Corpus(args.corpus), Tokenizer.load(args.tokenizer)
    total = sum(corpus.counts(domain, split)["bytes"] for domain in corpus.domains for split in SPLITS)
    with byte_progress("tokenising", total) as on_bytes:
        shards = build_shards(corpus, tokenizer, args.out, args.threads, args.replace, on_bytes, args.phase)
    _show_shards(shards, args.json)


def _run_info(args: argparse.Namespace) -> None:
    if (Path(args.directory) / MANIFEST).is_file():
        corpus = Corpus(args.directory)
        if args.verify:
            corpus.verify()
        _show_corpus(corpus, args.json)
    else:
        _show_shards(Shards.open(args.directory, args.verify), args.json)


def _show_corpus(corpus: Corpus, as_json: bool) -> None:
    if as_json:
        print_json(corpus.manifest)
        return
    rows = []
    for name in corpus.domains:
        domain = corpus.manifest["domains"][name]
        counts = [domain["splits"][split]["documents"] for split in SPLITS]
        size = sum(domain["splits"][split]["bytes"] for split in SPLITS)
        rows.append([name, *counts, size, domain["duplicates"], domain["invalid"], domain["too_short"]])
    rows.append(["total", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    print_table(["documents", *SPLITS, "bytes", "duplicates", "invalid", "too short"], rows)
    print(f"data hash {corpus.data_hash}")
    for name, *counts in rows[:-1]:
        missing = [split for split, count in zip(SPLITS, counts, strict=False) if not count]
        if missing:
            print(f"note: {name} has no {' and no '.join(missing)} document; raise the fraction to get some")


def _show_shards(shards: Shards, as_json: bool) -> None:
    if as_json:
        print_json(shards.manifest)
        return
    names = sorted({name for domains in shards.splits.values() for name in domains})
    rows = [[name, *(shards.splits[split][name]["tokens"] for split in SPLITS)] for name in names]
    rows.append(["total", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    print_table(["tokens", *SPLITS], rows)
    print(f"vocabulary {shards.vocab_size:,}, {shards.manifest['dtype']}, tokenizer {shards.tokenizer_hash[:12]}, "
          f"data {shards.data_hash[:12]}")
