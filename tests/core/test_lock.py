"""Locks: one holder at a time, on any file system; what a killed process left is free."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from symboliclight.core import lock
from symboliclight.core.errors import InputError

HOLD = """
import sys, time
from pathlib import Path
from symboliclight.core import lock
with lock.held(Path(sys.argv[1]), Path("runs/x")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["flock", "no flock", "flock that holds nothing"])
def path(request, tmp_path, monkeypatch):
    """A lock file on file systems of three kinds."""
    def refused(*arguments):
        raise OSError(37, "No locks available")

    if request.param != "flock":
        monkeypatch.setattr(fcntl, "flock", refused if request.param == "no flock" else lambda *arguments: None)
    return tmp_path / "run" / lock.NAME


@pytest.fixture
def other(path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def written(path, age=0.0, **changes):
    """A lock of another machine."""
    mine = lock.Holder(os.getpid(), "", "elsewhere", "far", "2026-01-02 03:04:05", "key")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(replace(mine, **changes))))
    os.utime(path, (time.time() - age,) * 2)


def test_the_second_process_is_refused_and_told_by_whom_and_since_when(path, other):
    message = rf"^x is in use by process {other.pid} since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d; [^\n]*$"
    with pytest.raises(lock.InUse, match=message), lock.held(path, "x"):
        pass
    assert lock.living(path).process == other.pid and path.exists()


@pytest.mark.parametrize("reaped", [True, False])
def test_what_a_killed_process_left_is_free_at_once(path, other, reaped):
    other.kill()
    if reaped:
        other.wait()
    time.sleep(0.05)
    assert path.exists()
    with lock.held(path, "x"):
        assert lock.living(path).process == os.getpid()
    assert not path.parent.exists() or not path.exists()


def test_a_lock_is_for_one_thread_of_a_process_as_well(path):
    with lock.held(path, "x"), pytest.raises(lock.InUse), lock.held(path, "x"):
        pass
    with lock.held(path, "x"):
        pass
    assert not path.parent.exists()  # it was made for the lock, and nothing was written


def test_whoever_waits_is_next(path):
    entered, events = threading.Event(), []

    def second():
        with lock.held(path, "x", wait=True):
            events.append("second")

    with lock.held(path, "x"):
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait(0.3)
        events.append("first")
    thread.join()
    assert events == ["first", "second"]


def test_a_process_elsewhere_lives_as_long_as_it_gives_a_sign(path):
    written(path, age=lock.SILENT / 2)
    with pytest.raises(lock.InUse, match=r"process \d+ on far since 2026-01-02 03:04:05"), lock.held(path, "x"):
        pass
    written(path, age=lock.SILENT * 2)
    with lock.held(path, "x"):
        pass


def test_a_later_process_of_the_same_number_is_another(path):
    written(path, place=lock._place(), born="1")
    assert lock.living(path) is None


def test_a_holder_gives_signs_of_life(path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with lock.held(path, "x"):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_a_holder_notices_that_it_was_taken_over_and_leaves_the_other_lock_alone(path):
    with lock.held(path, "x") as mine:
        mine.check()
        written(path)
        with pytest.raises(lock.InUse, match=r"taken over by process .* on far"):
            mine.check()
    assert path.exists()


def test_a_file_that_names_nobody_frees_itself(path):
    path.parent.mkdir()
    path.write_text("")  # being written
    with pytest.raises(lock.InUse, match="in use by another process"), lock.held(path, "x"):
        pass
    os.utime(path, (0, 0))  # of an earlier version
    with lock.held(path, "x"):
        pass


def test_a_folder_that_cannot_be_written_is_said_to_be_so(tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(InputError, match=r"cannot write .*Read-only file system; make the file system writable, or"), \
            lock.held(tmp_path / "run" / ".lock", "x"):
        pass
