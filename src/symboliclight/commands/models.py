"""What commands that run a model share: its options, a bar over tokens."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from symboliclight.commands.streams import utf8_text
from symboliclight.core.errors import InputError
from symboliclight.engine.pack import PRECISIONS
from symboliclight.generate.runner import SHIPPED
from symboliclight.generate.sampling import Sampling


def add_precision(
    parser: argparse.ArgumentParser,
    default: str = "the torch model, or the runtime for an exported folder and where torch is not installed",
) -> None:
    """Add --precision."""
    parser.add_argument("--precision", choices=PRECISIONS,
                        help=f"run on the torch-free CPU runtime with weights at this precision (default: {default})")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", default="cpu", metavar="NAME",
                        help="cpu, cuda, cuda:N or auto: where the torch model runs (default: cpu)")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add --threads."""
    parser.add_argument("--threads", type=int, metavar="N", help="threads the model runs on (default: all cores)")


def read_text(path: str) -> str:
    """A UTF-8 text file as it is. Raises `InputError` if it cannot be read or is not UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add --model."""
    parser.add_argument("--model", metavar="DIR", required=required, help="a checkpoint, or the folder of a run")


def add_model_or_shipped(parser: argparse.ArgumentParser) -> None:
    """Add --model, which may be left out."""
    parser.add_argument("--model", metavar="DIR", default=str(SHIPPED),
                        help="a checkpoint, an exported folder, or the folder of a run (default: the small model that "
                             "comes with the package)")


def add_turns(parser: argparse.ArgumentParser) -> None:
    """Add --turns and --no-turns; None where neither is given: as the model learned it."""
    parser.add_argument("--turns", action=argparse.BooleanOptionalAction, default=None,
                        help="mark turns with <|user|>, <|assistant|> and <|end|> (default: as the model was trained)")


def label_of(directory: str) -> str:
    """What a model is called in tables and files: the name of its folder, without the way there."""
    return Path(directory).name or Path(directory).resolve().name


def add_sampling(parser: argparse._ActionsContainer, seed: bool = True) -> None:
    """Add the options that choose the next token, and the seed."""
    d = Sampling()
    a = parser.add_argument
    a("--max-tokens", type=int, default=200, metavar="N", help="tokens to write at most (default: 200)")
    a("--temperature", type=float, default=d.temperature, metavar="T",
      help=f"0 always takes the most likely token, 1 is the model as it is (default: {d.temperature})")
    a("--top-k", type=int, default=50, metavar="K", help="choose among the K most likely; 0: all (default: 50)")
    a("--top-p", type=float, default=d.top_p, metavar="P",
      help="choose among the fewest most likely that hold probability P (default: 1, all)")
    a("--min-p", type=float, default=d.min_p, metavar="P",
      help="drop what is less likely than P times the most likely (default: 0, none)")
    a("--repetition-penalty", type=float, default=d.repetition_penalty, metavar="R",
      help="make recent tokens less likely; 1.1 is mild (default: 1, off)")
    a("--repetition-window", type=int, default=d.repetition_window, metavar="N",
      help=f"how many tokens are recent (default: {d.repetition_window})")
    a("--adaptive", type=float, nargs="?", const=0.5, default=0.0, metavar="NATS",
      help="lower the temperature where the model is sure: T·H/(H+NATS), H the entropy of the next token in nats "
           "(default: off; 0.5 if given without a number)")
    a("--stop", action="append", default=[], type=_text, metavar="TEXT",
      help="end before this text; may be given again")
    if seed:
        a("--seed", type=int, default=0, metavar="N", help="the same seed writes the same text (default: 0)")


def _text(value: str) -> str:
    try:
        return utf8_text(value)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def sampling_of(args: argparse.Namespace) -> Sampling:
    """The choices made with `add_sampling`."""
    if getattr(args, "seed", 0) < 0:
        raise InputError(f"--seed must not be negative, got {args.seed}")
    return Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty,
                    args.repetition_window, args.adaptive)


@contextmanager
def token_progress(label: str, total: int, unit: str = "tokens") -> Iterator[Callable[[int], None]]:
    """Show a bar over `total` tokens or other things; the yielded function adds those done. Silent off a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
               TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)
