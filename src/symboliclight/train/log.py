"""What a run shows while it works: metrics.jsonl, TensorBoard and a progress bar."""

import json
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from symboliclight.core.atomic import remedy
from symboliclight.core.errors import InputError
from symboliclight.train.folder import truncate_metrics

METRICS = "metrics.jsonl"


class Log:
    """Appends to metrics.jsonl and, if it is installed, TensorBoard. No step appears twice: see `rewind`.

    One that is not `active` writes nothing.
    """

    def __init__(self, directory: Path, tensorboard: bool, active: bool = True) -> None:
        self._active = active
        self._file = directory / METRICS
        self._folder = directory / "tensorboard" if tensorboard else None
        self._lines: IO[str] | None = None
        self._writer: Any = None

    def rewind(self, step: int, rollbacks: int) -> None:
        """Open the log as it was when `step` had been done after `rollbacks` rollbacks."""
        self.close()
        if not self._active:
            return
        try:
            truncate_metrics(self._file, step, rollbacks)
            self._lines = self._file.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {self._file}: {error.strerror}; to resume, {remedy(error)}") from error
        if self._folder is not None:
            self._writer = _tensorboard(self._folder, step + 1)

    def write(self, event: str, step: int, **values: Any) -> None:
        """One line: `event` is train, validation or rollback."""
        if not self._active:
            return
        assert self._lines is not None
        try:
            self._lines.write(json.dumps({"event": event, "step": step, **values}, allow_nan=False) + "\n")
            self._lines.flush()
        except OSError as error:
            raise InputError(f"cannot write {self._file}: {error.strerror}; to resume, {remedy(error)}") from error
        if self._writer is not None:
            for name, value in _numbers(event, values):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        for sink in (self._lines, self._writer):
            if sink is not None:
                sink.close()
        self._lines = self._writer = None


def _tensorboard(folder: Path, purge_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # optional: the numbers are in metrics.jsonl all the same
        return None
    return SummaryWriter(str(folder), purge_step=purge_step)  # type: ignore[no-untyped-call]


def _numbers(prefix: str, values: dict[str, Any]) -> list[tuple[str, float]]:
    """Nested values as flat TensorBoard names."""
    flat: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            flat += _numbers(f"{prefix}/{name}", value)
        elif isinstance(value, (int, float)):
            flat.append((f"{prefix}/{name}", float(value)))
    return flat


def progress_bar(shown: bool) -> Progress:
    """Bar on stderr with loss, tokens/s and time left; silent off a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
               TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not (shown and console.is_terminal))
