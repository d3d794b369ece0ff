"""`symboliclight study`: many training runs described by one file, their results, and a report."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from symboliclight.commands.output import print_json, print_table
from symboliclight.core.errors import InputError

_RUN = """
Run what is missing of a study, in the order of its file, one run at a time. Every finished run is one JSON file in
RESULTS; a file that is there, from whatever machine, is not run again. Ctrl-C, kill -9 or a power cut lose nothing: the
same command goes on. Several processes may work on one study in the same folders: each takes runs that no other has.
"""

_REPORT = """
Write tables and figures of the runs that have results: means with standard deviations, paired differences with 95%
intervals, verdicts on published orderings. Runs that are missing are listed as missing.
"""


def add(commands: Any) -> None:
    """Add the parsers."""
    top = commands.add_parser("study", help="run a study of many training runs, and report on it")
    actions = top.add_subparsers(metavar="ACTION", required=True)
    run = actions.add_parser("run", help="run what is missing", description=_RUN)
    status = actions.add_parser("status", help="what is done, running and missing, and the time left")
    report = actions.add_parser("report", help="tables and figures of what is done", description=_REPORT)
    for parser in (run, status, report):
        parser.add_argument("file", metavar="FILE", help="the study, e.g. studies/v1.toml")
        parser.add_argument("--results", required=True, metavar="DIR", help="folder of result files, one JSON a run")
        parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    for parser in (run, status):
        parser.add_argument("--work", required=parser is run, metavar="DIR",
                            help="folder for data, checkpoints and locks" + " (to see what is running)" *
                            (parser is status))
        parser.add_argument("--only", nargs="+", default=[], metavar="NAME",
                            help="groups or labels to take (default: all)")
        parser.add_argument("--tokens", type=int, metavar="N", help="take only runs of this budget (default: all)")
    data = run.add_mutually_exclusive_group()
    data.add_argument("--corpus", metavar="FOLDER",
                      help="texts: a file or a subfolder for each domain; read once, into WORK/data")
    data.add_argument("--data", metavar="SHARDS", help="token shards that are ready, instead of --corpus")
    run.add_argument("--precision", choices=("auto", "bfloat16", "float32"),
                     help="of products, instead of what the study says; decides for a run that was begun in bfloat16 "
                          "where the processor does not multiply it")
    report.add_argument("--out", required=True, metavar="DIR",
                        help="folder for report.md, report.html, report.json and the figures")
    run.set_defaults(run=_run)
    report.set_defaults(run=_report)
    status.set_defaults(run=_status)


def _load(args: argparse.Namespace) -> tuple[Any, list[Any]]:
    try:
        from symboliclight.study import choose, read_study
    except ImportError as error:
        raise InputError(f"study needs the training extra ({error.name} is missing): "
                         "pip install 'symboliclight[train]'") from error
    study = read_study(args.file)
    return study, choose(study, getattr(args, "only", ()), getattr(args, "tokens", None))


def _run(args: argparse.Namespace) -> int:
    study, chosen = _load(args)
    from rich.console import Console

    from symboliclight.data.shards import Shards
    from symboliclight.study.results import Results
    from symboliclight.study.work import data_hash, prepare, work

    console = Console(stderr=True, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(text: str) -> Iterator[None]:
        start = time.perf_counter()
        with console.status(text):
            yield
        if time.perf_counter() - start > 1:
            console.print(f"{text}: {time.perf_counter() - start:.0f} s")

    folder = Path(args.work)
    shards = Shards.open(args.data) if args.data else prepare(
        study, folder / "data", Path(args.corpus) if args.corpus else None, stage)
    results = Results(args.results, data_hash(shards), study.split)
    outcome = work(study, chosen, shards, folder, results, lambda run, body: console.print(_line(run, body)),
                   args.precision)
    if args.json:
        print_json({"done": outcome.done, "present": outcome.present, "locked": outcome.locked,
                    "interrupted": outcome.interrupted})
    else:
        print(f"{len(outcome.done)} runs done, {len(outcome.present)} were there already, "
              f"{len(outcome.locked)} are with other processes")
        if outcome.interrupted:
            print(f"{outcome.interrupted} was interrupted and saved; the same command goes on")
    return 1 if outcome.interrupted else 0


def _line(run: Any, body: dict[str, Any]) -> str:
    if "diverged" in body:
        return f"{run.group}/{run.name}: {body['diverged']}"
    mean, training = body["test"]["mean"]["token_weighted"], body["training"]
    return (f"{run.group}/{run.name} lr {run.config.train.lr:g}: {mean['nats_per_token']:.4f} nats, "
            f"{mean['bits_per_byte']:.4f} bits/byte, {training['tokens_per_second']:,.0f} tokens/s, "
            f"{training['seconds']:.0f} + {training['measuring_seconds']:.0f} s")


def _status(args: argparse.Namespace) -> None:
    study, chosen = _load(args)
    from symboliclight.study.results import Results
    from symboliclight.study.work import is_locked, seconds_left

    results = Results(args.results, split=study.split)
    rows: dict[tuple[str, str, int], dict[str, int]] = {}
    for run in chosen:
        row = rows.setdefault((run.group, run.label, run.tokens),
                              {"runs": 0, "done": 0, "diverged": 0, "running": 0, "missing": 0})
        body = results.get(run)
        state = "missing" if body is None else "diverged" if "diverged" in body else "done"
        if body is None and args.work and results.data_hash:
            lock = Path(args.work) / "locks" / run.identity(results.data_hash)
            state = "running" if is_locked(lock) else state
        row["runs"] += 1
        row[state] += 1
    left = seconds_left(chosen, results)
    if args.json:
        print_json({"study": study.name, "seconds_left": left, "rows": [
            {"group": group, "label": label, "tokens": tokens, **row} for (group, label, tokens), row in rows.items()]})
        return
    print_table(("group", "label", "tokens", *next(iter(rows.values()))),
                [(*key, *row.values()) for key, row in rows.items()])
    print("time left: unknown until a run is done" if left is None
          else f"time left for one process: {left / 3600:.1f} hours")


def _report(args: argparse.Namespace) -> None:
    study, _ = _load(args)
    try:
        from symboliclight.study.report import write_report
        from symboliclight.study.results import Results
    except ImportError as error:
        raise InputError(f"study report needs {error.name}: pip install 'symboliclight[train]'") from error

    body = write_report(study, Results(args.results, split=study.split), Path(args.out))
    if args.json:
        print_json(body)
        return
    main = body["tables"].get("main")
    if main:
        print_table(main["head"], main["rows"])
    runs = body["runs"]
    print(f"{runs['done']} runs measured, {runs['diverged']} diverged, {runs['missing']} missing; "
          f"{Path(args.out) / 'report.html'} has all tables and figures")
