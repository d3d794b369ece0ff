"""One process at a time for what is written over minutes or days: a run, a study's data, a corpus.

A lock is a small file that names its holder. Whether a holder on this machine lives is looked up, so that what a killed
process left is free at once. One elsewhere (another machine on a network file system, another container) gives a sign
of life: it touches the file every BEAT seconds, and SILENT seconds without one free the lock. Locks of the system
(flock) are not relied upon: over network file systems they fail, or hold on one machine only.
"""

import contextlib
import json
import os
import platform
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from symboliclight.core.atomic import remedy
from symboliclight.core.errors import InputError

NAME = ".lock"  # in a folder that is locked
BEAT, SILENT = 10.0, 60.0  # seconds


class InUse(InputError):
    """Another process holds the lock."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock."""

    process: int
    born: str  # when, as the system counts: a later process may have the same number
    place: str  # where numbers of processes mean the same: one boot of one machine, one container
    machine: str
    since: str
    key: str  # of this holding of this lock


_UNKNOWN = Holder(0, "", "", "", "", "")


class Lock:
    """A lock that this process holds."""

    def __init__(self, path: Path, what: Path, mine: Holder) -> None:
        self._path, self._what, self._mine = path, what, mine

    def is_mine(self) -> bool:
        """Whether nobody has taken it over, as after a minute of standstill."""
        try:
            return _read(self._path)[0] == self._mine
        except OSError:
            return False

    def check(self) -> None:
        """Raise `InUse` if it was taken over."""
        if not self.is_mine():
            raise InUse(f"{self._what} was taken over by {_named(living(self._path))} while this process stood still; "
                        "nothing more is written, let the other one go on")


@contextlib.contextmanager
def held(path: Path, what: Path, wait: bool = False) -> Iterator[Lock]:
    """Hold the lock file `path`, which guards `what`, for the block; with `wait` as soon as it is free.

    Raises `InUse` if another process holds it, and `InputError` if it cannot be written.
    """
    made = not path.parent.exists()
    mine = Holder(os.getpid(), _born(os.getpid()) or "", _place(), platform.node(), time.strftime("%Y-%m-%d %H:%M:%S"),
                  secrets.token_hex(8))
    try:
        while (other := _take(path, mine)) is not None:
            if not wait:
                raise InUse(f"{what} is in use by {_named(other)}; wait until it ends or stop it, "
                            "or choose another folder")
            time.sleep(0.2)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; {remedy(error)}") from error
    lock, ended = Lock(path, what, mine), threading.Event()
    pulse = threading.Thread(target=_beat, args=(path, lock, ended), daemon=True)
    pulse.start()
    try:
        yield lock
    finally:
        ended.set()
        pulse.join()
        with contextlib.suppress(OSError):
            if lock.is_mine():
                path.unlink()
            if made:
                path.parent.rmdir()  # if nothing was written


def living(path: Path) -> Holder | None:
    """Who holds the lock file `path` now."""
    try:
        holder, touched = _read(path)
    except FileNotFoundError:
        return None
    if holder.place == _place():
        return holder if _born(holder.process) in (holder.born, "") else None
    return holder if _clock(path.parent) - touched < SILENT else None


def _take(path: Path, mine: Holder) -> Holder | None:
    """Write the lock, or return who has it."""
    path.parent.mkdir(parents=True, exist_ok=True)  # each time: a holder that wrote nothing takes its folder away
    with _undisturbed(path.parent):
        if (other := living(path)) is not None:
            return other
        path.unlink(missing_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:  # where folders cannot be kept undisturbed
            return living(path) or _UNKNOWN
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(asdict(mine), file)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    return None


def _read(path: Path) -> tuple[Holder, float]:
    """The holder that a lock file names, and when it gave its last sign of life, by the clock of the file system."""
    with path.open("rb") as file:
        touched = os.fstat(file.fileno()).st_mtime
        try:
            return Holder(**json.load(file)), touched
        except (ValueError, TypeError):  # it is being written, or an earlier version wrote it
            return _UNKNOWN, touched


def _beat(path: Path, lock: Lock, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            if lock.is_mine():
                os.utime(path)


def _named(holder: Holder | None) -> str:
    if holder is None or not holder.process:
        return "another process"
    where = f" on {holder.machine}" if holder.place != _place() else ""
    return f"process {holder.process}{where} since {holder.since}"


def _born(process: int) -> str | None:
    """When a process began, as an opaque word; None if there is none, or it was killed and waits for its parent."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it is somebody else's
    try:
        state, *numbers = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # no Linux: the number alone must do
        return ""
    return None if state in "ZX" else numbers[18]


def _place() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    return platform.node()


def _clock(folder: Path) -> float:
    """What the file system of `folder` takes for now, s; that of another machine may differ."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime
    return time.time()


@contextlib.contextmanager
def _undisturbed(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine from taking a stale lock at the same time, where the system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            for _ in range(20):  # a second at most: somebody may lock the folder for reasons of their own
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)
