"""`symboliclight demo`: train, compare and explain a tiny bilingual spiking model in a few minutes."""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from symboliclight.commands.output import print_json
from symboliclight.core.errors import InputError

SHIPPED_TOKENS = 200  # of each text by the model that comes with the package


def add(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("demo", help="train a tiny bilingual spiking model beside GPT-2 and write a report")
    p.add_argument("--out", type=Path, default=Path("demo"), help="folder; an interrupted demo goes on (default: demo)")
    size = p.add_mutually_exclusive_group()
    size.add_argument("--minutes", type=float, default=8.0, metavar="M",
                      help="time for everything: both models are tried for seconds, and their training tokens are what "
                           "fits into it on this machine (default: 8)")
    size.add_argument("--tokens", type=int, metavar="N", help="training tokens of each model, instead of --minutes")
    p.add_argument("--precision", choices=("auto", "bfloat16", "float32"), default="auto",
                   help="of products in training; auto: bfloat16 where the processor multiplies it (default: auto)")
    p.add_argument("--seed", type=int, default=42, help="seed of weights, data order and samples (default: 42)")
    p.add_argument("--json", action="store_true", help="print result.json instead of the table")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    try:
        from symboliclight.show.demo import Demo, demo
    except ImportError as error:
        raise InputError(f"demo needs the training extra ({error.name} is missing): "
                         "pip install 'symboliclight[train]'") from error
    if args.tokens is not None and args.tokens < 100_000:
        raise InputError(f"--tokens must be at least 100000 for curves that mean something, got {args.tokens}")
    if not 0 < args.minutes < math.inf:
        raise InputError(f"--minutes must be a positive number, got {args.minutes:g}")
    err = Console(stderr=True)
    _show_shipped(err)
    options = Demo(args.tokens, args.minutes, args.precision, args.seed)

    @contextmanager
    def stage(text: str) -> Iterator[None]:
        start = time.perf_counter()
        with err.status(text):
            yield
        err.print(f"[dim]{text}: {time.perf_counter() - start:.0f} s[/]")

    result = demo(args.out, options, stage, started)
    print_json(result) if args.json else _show(result, args.out)


def _show_shipped(console: Console) -> None:
    """What the model that comes with the package writes, before anything is trained."""
    from symboliclight.core.turns import ends
    from symboliclight.generate.runner import SHIPPED, load_runner
    from symboliclight.generate.sampling import Sampling, generate

    model, tokenizer = load_runner(str(SHIPPED))
    console.print("The model that comes with the package ([bold]symboliclight generate[/]; docs/results/shipped.md) "
                  "writes:")
    for prompt in ("Once upon a time", "从前，"):
        ids = tokenizer.encode(prompt, bos=True)
        how = Sampling(temperature=0.8, top_k=50)  # as `generate` does
        text = generate(model, tokenizer, [ids], SHIPPED_TOKENS, how, stop_ids=ends(tokenizer), seed=0)[0].text
        console.print("  " + prompt + text.replace("\n", "\n  "), highlight=False, markup=False)
    console.print("\nNow two models are trained from nothing, to see how they differ.")


def _show(result: dict[str, Any], out: Path) -> None:
    from symboliclight.show.report import comparison_rows

    seconds, budget = result["seconds"], result["budget"]
    asked = f" of {budget['minutes']:g}" if budget["minutes"] else ""
    table = Table(title=f"{result['runs'][0]['tokens']:,} tokens each, held-out text; {seconds / 60:.1f}{asked} min")
    head, rows = comparison_rows(result["runs"])
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for sample in result["samples"]:
        console.print(f"[bold]{sample['label']}[/]")
        console.print(sample["prompt"] + sample["text"] + "\n", highlight=False, markup=False)
    console.print(f"Report: [bold]{out / 'report.html'}[/] (open it in a browser). Next:", highlight=False)
    program = sys.argv[0]  # as it was called: a fresh virtual environment is not on the PATH
    console.print(f"""  {program} generate "It was a dark night" --model {out}/tiny
  {program} chat --model {out}/tiny
  {program} train --preset mini --data {out}/shards --out runs/mini
  {program} eval --model {out}/tiny --data {out}/shards --split test""", highlight=False, markup=False, soft_wrap=True)
