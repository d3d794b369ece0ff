"""What the commands share: a progress bar on stderr, tables and JSON on stdout."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def byte_progress(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar over `total` bytes (None: unknown); the yielded function adds bytes done. Silent off a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda size: progress.advance(task, size)


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]], width: int | None = None) -> None:
    """Print aligned columns: words to the left, numbers to the right.

    Where that is wider than `width` characters (None: the terminal's, without limit in a file) each row becomes lines
    of its own, every figure beside its heading.
    """
    cells = [list(header)] + [[f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in rows]
    widths = [max(map(columns, column)) for column in zip(*cells, strict=True)]
    if sum(widths) + 2 * len(widths) - 2 > (terminal_width() if width is None else width):
        _print_stacked(cells[0], cells[1:], terminal_width() if width is None else width)
        return
    for row in cells:
        words = [" " * (width - columns(cell)) + cell if i else cell + " " * (width - columns(cell))
                 for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(words).rstrip())


def _print_stacked(header: Sequence[str], rows: Sequence[Sequence[str]], width: float) -> None:
    for first, *others in rows:
        print(first or header[0])
        line = ""
        for name, cell in zip(header[1:], others, strict=True):
            pair = f"{name} {cell}".strip()
            if not cell:
                continue
            if line and columns(line) + columns(pair) + 4 > width:
                print(f"  {line}")
                line = ""
            line += f"  {pair}" if line else pair
        if line:
            print(f"  {line}")


def columns(text: str) -> int:
    """Columns that a terminal gives to `text`: two to a Chinese character."""
    return cell_len(text)


def terminal_width() -> float:
    """Columns of the terminal that stdout is, infinite where it is a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf


def print_json(value: Any) -> None:
    """Print one JSON document, in ASCII where standard output is not UTF-8."""
    utf8 = (sys.stdout.encoding or "utf-8").lower().replace("-", "") == "utf8"
    print(json.dumps(value, indent=2, ensure_ascii=not utf8))
