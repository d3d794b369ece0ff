"""The folder of a run, and everything in it that a resumed run reads.

    run.json        the configuration, seed, hashes of data and tokenizer, commit and machine; at the end the result
    metrics.jsonl   one line per logged step, validation and rollback
    .lock           the process that works on it, while it does
    step-00000200/  checkpoints; the newest `train.keep` stay
    last, best      links to two of them, which stay as well
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from symboliclight.core import checkpoint, lock, provenance
from symboliclight.core.atomic import remedy, write_atomic
from symboliclight.core.checkpoint import LAST
from symboliclight.core.config import RunConfig, load_json, load_run, to_dict
from symboliclight.core.errors import InputError
from symboliclight.train.distributed import Group

RUN, BEST = "run.json", "best"
_OURS = (f"{RUN}.part", lock.NAME)  # may be there before a run begins
_FREE = ("data.directory", "train.init", "train.precision")  # fields that may change when a run is resumed


@dataclass
class Progress:
    """How far a run has come: the numbers in a checkpoint beside weights, optimiser, data cursor and random states."""

    step: int = 0
    lr_scale: float = 1.0  # halved by every rollback
    rollbacks: int = 0
    mean_loss: float | None = None  # running mean that divergence is measured against, nats
    loss_sum: float = 0.0  # since the last line of the log, so that a resumed run writes the same line
    loss_count: int = 0
    seconds: float = 0.0  # spent in steps, over all sessions
    best: float | None = None  # lowest validation loss so far, nats
    validation: dict[str, Any] = field(default_factory=dict)  # the newest


def write_run(directory: Path, run: RunConfig, facts: Mapping[str, Any]) -> None:
    """Write run.json atomically."""
    try:
        provenance.write_result(directory / RUN, {"format": 1, **to_dict(run), "seed": run.train.seed, **facts})
    except OSError as error:
        raise InputError(f"cannot write {directory / RUN}: {error.strerror}; "
                         + remedy(error, "choose another --out")) from error


@contextmanager
def alone_in(directory: Path, group: Group) -> Iterator[lock.Lock | None]:
    """Keep other processes than those of `group` out of a run folder; the first of them holds the lock.

    Raises `lock.InUse` in all of them if another process works on the run.
    """
    refused: InputError | None = None
    with ExitStack() as stack:
        mine = None
        if group.leads:
            try:
                mine = stack.enter_context(lock.held(directory / lock.NAME, directory))
            except InputError as error:
                refused = error
        if group.any(refused is not None):
            raise refused or lock.InUse(f"{directory} cannot be worked on; the first process says why")
        yield mine


def known(directory: Path, run: RunConfig, resume: bool) -> bool:
    """Whether `directory` holds this run already; if not, it is free to begin one.

    Raises `InputError` if it holds another run (naming the fields that differ), any run while `resume` is false, or
    something else.
    """
    if (directory / RUN).exists():
        if not resume:
            raise InputError(f"{directory} holds a run already; choose another --out, or allow it to be resumed")
        _check_same(directory, run)
        return True
    if directory.exists() and (not directory.is_dir() or any(p.name not in _OURS for p in directory.iterdir())):
        raise InputError(f"{directory} exists and holds something else; choose another --out")
    return False


def stored_precision(directory: Path) -> str | None:
    """What the run in `directory` computes in; None if there is none."""
    if not (directory / RUN).exists():
        return None
    body = load_json(directory / RUN)
    return body.get("precision") or load_run(directory / RUN).train.precision


def _check_same(directory: Path, run: RunConfig) -> None:
    """The places of data and first weights may change, and the precision: contents are checked, or read already."""
    old, new = _flat(to_dict(load_run(directory / RUN))), _flat(to_dict(run))
    names = [name for name in sorted(old | new) if old.get(name) != new.get(name) and name not in _FREE]
    if names:
        shown = ", ".join(f"{name} was {old.get(name)}, now {new.get(name)}" for name in names[:3])
        more = f", and {len(names) - 3} more" if names[3:] else ""
        raise InputError(f"{directory} holds a run with another configuration: {shown}{more}; "
                         "choose another --out, or resume it with its own options")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def checkpoint_path(directory: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimiser steps lives."""
    return directory / f"step-{step:08d}"


def mean_of_newest(directory: Path, count: int) -> dict[str, Any]:
    """The mean of the weights of the newest `count` checkpoints of a run, in torch, summed in float64.

    Raises `InputError` if there are fewer, or one is damaged.
    """
    found = sorted(directory.glob("step-*"))
    if not 1 <= count <= len(found):
        raise InputError(f"{directory} holds {len(found)} checkpoints of a run, {count} were asked for; "
                         "give a number up to that, and train with --set train.keep=N to keep more")
    *others, last = (checkpoint.load(path)[1] for path in found[-count:])
    return {name: (sum((other[name].double() for other in others), tensor.double()) / count).to(tensor.dtype)
            for name, tensor in last.items()}


def link(directory: Path, name: str, target: Path) -> None:
    """Point `name` in the run folder to a checkpoint, atomically and without a copy."""
    part = directory / f".{name}.partial"
    try:
        part.unlink(missing_ok=True)
        part.symlink_to(target.name, target_is_directory=True)
        os.replace(part, directory / name)
    except OSError as error:
        raise InputError(f"cannot link {directory / name} to {target}: {error.strerror}; "
                         + remedy(error, "choose a file system with symbolic links")) from error


def prune(directory: Path, keep: int) -> None:
    """Delete all checkpoints but the newest `keep`, `last` and `best`, and what killed saves left behind."""
    linked = {(directory / name).resolve().name for name in (LAST, BEST)}
    old = sorted(directory.glob("step-*"))[:-keep]
    for path in [*(path for path in old if path.name not in linked), *directory.glob(".step-*.partial")]:
        shutil.rmtree(path, ignore_errors=True)


def truncate_metrics(file: Path, step: int, rollbacks: int) -> None:
    """Drop the lines after `step`, but not the first `rollbacks` rollbacks, and a line cut short by a kill."""
    kept: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            body = json.loads(line)
        except ValueError:
            continue
        rollback = body["event"] == "rollback"
        if rollbacks > 0 if rollback else body["step"] <= step:
            kept.append(line + "\n")
            rollbacks -= rollback
    write_atomic(file, "".join(kept).encode())
