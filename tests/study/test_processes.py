"""Real processes: killed with SIGKILL a study goes on to the same figures, and two workers share it without overlap."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from symboliclight.study import read_study
from symboliclight.study.results import Results
from symboliclight.study.work import data_hash, work

LABELS = ("v1",)


@pytest.fixture
def longer(study_file):
    """Thirty steps a run, so that there is a middle to be killed in."""
    study_file.write_text(study_file.read_text().replace("tokens = 640", "tokens = 1920"))
    return study_file


def start(file, shards, folder):
    command = [sys.executable, "-m", "symboliclight", "study", "run", str(file), "--data", str(shards.path),
               "--work", str(folder / "work"), "--results", str(folder / "results"), "--only", *LABELS,
               "--tokens", "1920", "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for_step(process, folder, step):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for log in (folder / "work" / "runs").glob("*/metrics.jsonl"):
            lines = [line for line in log.read_text().splitlines() if line.endswith("}")]
            if lines and json.loads(lines[-1])["step"] >= step:
                return
        time.sleep(0.005)


def figures(directory):
    """What must not depend on who ran it: all but the clock, the machine and the threads."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        body = json.loads(path.read_text())
        clock = {"training", "machine", "threads", "commit"}
        found[path.name] = {key: value for key, value in body.items() if key not in clock}
    return found


def test_a_killed_study_goes_on_and_two_workers_share_it(longer, small_shards, tmp_path):
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    study = read_study(longer)
    runs = [run for run in study.runs if run.label in LABELS and run.group == "main"]
    whole = tmp_path / "whole"
    work(study, runs, small_shards, whole / "work", Results(whole / "results", data_hash(small_shards)))
    torch.set_num_threads(threads)

    first = start(longer, small_shards, tmp_path)
    wait_for_step(first, tmp_path, 11)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, "the study was over before it was killed"
    assert not list((tmp_path / "results").glob("*.json"))

    both = [start(longer, small_shards, tmp_path) for _ in range(2)]
    answers = []
    for process in both:
        out, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        answers.append(json.loads(out))
    done = [name for answer in answers for name in answer["done"]]
    assert sorted(done) == sorted(run.name for run in runs)
    assert figures(tmp_path / "results") == figures(whole / "results")


def test_the_command_says_what_is_wrong_in_one_line(longer, small_shards, tmp_path):
    longer.write_text(longer.read_text().replace('ffn = "gelu"', 'ffn = "relu"'))
    process = start(longer, small_shards, tmp_path)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert errors.count("\n") == 1 and "run 3 (gelu-ffn) model.ffn must be one of" in errors
