"""`symboliclight eval --tasks` and `--wikitext`: the tasks of lm-evaluation-harness."""

import argparse
from pathlib import Path
from typing import Any

from symboliclight.commands.models import add_precision
from symboliclight.commands.output import print_table
from symboliclight.core.errors import InputError


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """Add the options of tasks."""
    a = parser.add_argument
    a("--tasks", metavar="NAMES", help="tasks of lm-evaluation-harness, separated by commas, instead of --data: "
                                       "piqa,arc_easy (pip install 'symboliclight[lm-eval]')")
    a("--wikitext", metavar="FILE",
      help="WikiText-103's wiki.test.raw, or its folder, instead of --data: perplexity by word")
    a("--include-path", action="append", default=[], metavar="DIR",
      help="folder of further task files; may be given again")
    a("--limit", type=int, metavar="N",
      help="documents of each task, pairs of each paradigm or questions of each file at most, always the same ones "
           "(default: all)")
    a("--num-fewshot", type=int, metavar="N", help="solved examples before each question (default: the task's)")
    add_precision(parser)


def asks_for_tasks(args: argparse.Namespace) -> bool:
    """Whether tasks are wanted. Raises `InputError` for options that need tasks where none are."""
    if args.tasks is not None or args.wikitext is not None:
        return True
    if args.precision is not None:
        raise InputError("--precision goes with --tasks and benchmarks; --data and --text measure the torch model")
    return False


def run_tasks(args: argparse.Namespace) -> dict[str, Any]:
    """What the harness finds; its own reports go to stderr."""
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit must be positive, got {args.limit}")
    if args.num_fewshot is not None and args.num_fewshot < 0:
        raise InputError(f"--num-fewshot must not be negative, got {args.num_fewshot}")
    for folder in args.include_path:
        if not Path(folder).is_dir():
            raise InputError(f"--include-path {folder} is not a folder; check the path")
    try:
        from symboliclight.interop.lm_eval import HarnessModel, evaluate_tasks
    except ImportError as error:
        raise InputError("tasks need lm-evaluation-harness: pip install 'symboliclight[lm-eval]'") from error
    names = [name for name in (args.tasks or "").split(",") if name] + ["wikitext103"] * (args.wikitext is not None)
    model = HarnessModel(args.model, args.precision, args.seq_len)
    return evaluate_tasks(model, list(dict.fromkeys(names)), args.include_path, args.limit, args.num_fewshot,
                          args.wikitext)


def print_tasks(result: dict[str, Any]) -> None:
    """A table of all metrics of all tasks."""
    rows = []
    for task, figures in result["results"].items():
        for key, value in figures.items():
            metric, _, taken = key.partition(",")  # taken: the filter that takes an answer out of a text
            if not taken or metric.endswith("_stderr"):
                continue
            error = figures.get(f"{metric}_stderr,{taken}")
            rows.append((task, str(result["n-shot"].get(task, "")), metric if taken == "none" else key,
                         f"{value:,.4f}", f"{error:.4f}" if isinstance(error, float) else ""))
    print_table(("task", "examples shown", "metric", "value", "standard error"), rows)
