"""Several processes, started by torchrun, train what one trains."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from test_resume import logged, wait_for_step

from symboliclight.core import lock
from symboliclight.core.checkpoint import MODEL, OPTIMIZER
from symboliclight.core.config import DataConfig, RunConfig, TrainConfig, save_json
from symboliclight.core.errors import InputError
from symboliclight.train.distributed import ALONE, Group
from symboliclight.train.folder import link
from symboliclight.train.loop import _check

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
TRAIN = ["-m", "symboliclight", "train", "--device", "cpu"]


@pytest.fixture
def run(small_config, small_shards):
    """No dropout; micro-batches of which several have no target."""
    settings = TrainConfig(tokens=12 * 4 * 32, batch_size=2, accumulate=2, lr=3e-3, warmup_steps=2, log_every=3,
                           precision="float32", break_even=0.125, eval_every=6, eval_tokens=64, save_every=4, keep=2)
    return RunConfig(small_config, DataConfig(str(small_shards.path), {}, 32), settings)


@pytest.fixture
def command(run, tmp_path, monkeypatch):
    """run -> the command line for it, in `count` processes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if sys.platform == "linux":
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # whatever the name of this machine resolves to

    def made(run, count, name):
        save_json(tmp_path / f"{name}.json", model=run.model, data=run.data, train=run.train)
        start = [*TORCHRUN, str(count), *TRAIN] if count > 1 else [sys.executable, *TRAIN]
        return [*start, "--config", str(tmp_path / f"{name}.json"), "--out", str(tmp_path / name)]

    return made


def finished(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_all(directory):
    """SIGKILL for every process whose command line names `directory`; how many there were."""
    killed = 0
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it is gone already
            if str(directory).encode() in line.read_bytes():
                os.kill(int(line.parent.name), signal.SIGKILL)
                killed += 1
    return killed


def weights(directory):
    return {name: safetensors.torch.load_file(directory / "last" / name) for name in (MODEL, OPTIMIZER)}


def assert_equal(one, other):
    for name in one:
        assert one[name].keys() == other[name].keys()
        for key, tensor in one[name].items():
            assert torch.equal(tensor, other[name][key]), (name, key)


def test_two_processes_take_the_steps_of_one_and_go_on_with_its_run(run, command, tmp_path):
    """Bit for bit: with two micro-batches a step the sum of gradients has one order."""
    finished(command(run, 1, "one"))
    shown = finished(command(run, 2, "two"))
    assert_equal(weights(tmp_path / "one"), weights(tmp_path / "two"))
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        spikes = a.pop("spikes", {}), b.pop("spikes", {})
        assert a == b
        assert spikes[0].keys() == spikes[1].keys()
        assert list(spikes[0].values()) == pytest.approx(list(spikes[1].values()), abs=1e-6)
    assert shown.count("12 of 12 steps") == 1
    facts = json.loads((tmp_path / "two" / "run.json").read_text())
    assert facts["processes"] == 2 and facts["result"]["tokens"] == 12 * 4 * 32
    link(tmp_path / "one", "last", tmp_path / "one" / "step-00000008")
    finished(command(run, 2, "one"))
    assert logged(tmp_path / "one") == logged(tmp_path / "two")
    assert_equal(weights(tmp_path / "one"), weights(tmp_path / "two"))


def test_a_group_is_refused_a_folder_in_use_by_all_its_processes(run, command, tmp_path):
    with lock.held(tmp_path / "run" / lock.NAME, tmp_path / "run"):
        done = subprocess.run(command(run, 2, "run"), capture_output=True, text=True, timeout=200)
        assert not (tmp_path / "run" / "run.json").exists()
    assert done.returncode != 0
    assert f"run is in use by process {os.getpid()} since" in done.stderr and "Connection closed" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_two_processes_stopped_and_killed_go_on_to_the_same_weights(run, command, tmp_path):
    settings = replace(run.train, accumulate=4, tokens=60 * 8 * 32)
    run = replace(run, model=replace(run.model, dropout=0.1), train=settings)
    finished(command(run, 2, "whole"))
    process = subprocess.Popen(command(run, 2, "broken"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(process, tmp_path / "broken", 3)
    process.send_signal(signal.SIGINT)  # torchrun passes it on
    process.communicate(timeout=100)
    saved = json.loads((tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert 3 <= saved < 60
    process = subprocess.Popen(command(run, 2, "broken"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(process, tmp_path / "broken", saved + 6)
    assert kill_all(tmp_path / "broken") >= 3  # torchrun and both processes
    process.communicate(timeout=100)
    finished(command(run, 2, "broken"))
    assert logged(tmp_path / "broken") == logged(tmp_path / "whole")
    assert_equal(weights(tmp_path / "broken"), weights(tmp_path / "whole"))


def test_micro_batches_that_cannot_be_shared_are_refused(run, small_shards):
    with pytest.raises(InputError, match="must be a multiple of 2, not 3"):
        _check(replace(run, train=replace(run.train, accumulate=3)), small_shards, Group(1, 2))


def test_micro_batches_are_dealt_out_once():
    dealt = [i for rank in range(3) for i in Group(rank, 3).mine(6)]
    assert sorted(dealt) == list(range(6)) == list(ALONE.mine(6))
    assert ALONE.any(True) and not ALONE.any(False) and ALONE.leads and not Group(1, 3).leads
