"""Killed with SIGKILL at random moments, a run ends with bitwise the same losses and weights as one left alone."""

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from symboliclight.core.checkpoint import MODEL, OPTIMIZER, STATE
from symboliclight.core.config import DataConfig, RunConfig, TrainConfig, from_dict, to_dict
from symboliclight.core.errors import InputError
from symboliclight.core.lock import InUse
from symboliclight.ops import events
from symboliclight.train import loop, train
from symboliclight.train.folder import truncate_metrics

STEPS = 60
PROGRAM = """
import json, sys, torch
from symboliclight.core.config import RunConfig, from_dict
from symboliclight.train import train
torch.set_num_threads(1)
train(from_dict(RunConfig, json.loads(sys.argv[1])), sys.argv[2], device=sys.argv[3], tensorboard=False)
"""


@pytest.fixture(scope="module")
def run(small_config, small_shards):
    """Dropout, accumulation, an auxiliary loss, bfloat16, and checkpoints that lie between the lines of the log."""
    model = replace(small_config, dropout=0.1, aux_layers=(0,))
    settings = TrainConfig(tokens=STEPS * 4 * 32, batch_size=2, accumulate=2, lr=3e-3, warmup_steps=5, log_every=3,
                           precision="bfloat16", break_even=0.125, eval_every=20, eval_tokens=64, save_every=7, keep=2)
    return RunConfig(model, DataConfig(str(small_shards.path), {"english": 1.0, "chinese": 2.0}, 32), settings)


def start(run, directory, device="cpu"):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, json.dumps(to_dict(run)), str(directory), device],
                            stderr=subprocess.PIPE, text=True)


def logged(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    timed = {"seconds", "tokens_per_second"}
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


def wait_for_step(process, directory, step):
    """Until the log has reached `step`; a moment later the process may be anywhere, in a save as well."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])["step"] >= step:
                return
        except (OSError, IndexError, ValueError):
            pass
        time.sleep(0.002)


def test_kill_9_at_random_moments_changes_not_one_bit(run, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(run, tmp_path / "whole", device="cpu", tensorboard=False)
    torch.set_num_threads(threads)
    chance = random.Random()  # a new moment every time the test runs: any moment must do
    moments = chance.randrange(1, 7), chance.randrange(7, STEPS - 5)  # back to step 0, and to a later one
    killed = []
    for moment in moments:
        process = start(run, tmp_path / "killed")
        wait_for_step(process, tmp_path / "killed", moment)
        time.sleep(chance.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        killed.append(process.wait())
    process = start(run, tmp_path / "killed")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert killed[0] == -signal.SIGKILL, f"the run was over before it was killed at step {moments}"
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole"), moments
    for name in (MODEL, OPTIMIZER):
        tensors, expected = (safetensors.torch.load_file(tmp_path / n / "last" / name) for n in ("killed", "whole"))
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[key], expected[key]) for key in expected), moments
    left = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("killed", "whole")]
    assert left[0] == left[1], moments


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_run_killed_on_a_gpu_goes_on_to_the_same_losses(run, tmp_path):
    """Steps there are recorded; a process that goes on records them anew."""
    run = replace(run, model=replace(run.model, dropout=0.0),
                  train=replace(run.train, accumulate=1, batch_size=4, precision="float32"))
    train(run, tmp_path / "whole", device="cuda", tensorboard=False)
    process = start(run, tmp_path / "killed", "cuda")
    wait_for_step(process, tmp_path / "killed", 20)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process = start(run, tmp_path / "killed", "cuda")
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")


def test_the_log_is_cut_back_to_the_resumed_step_but_keeps_its_rollbacks(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = ['{"event": "train", "step": 5}', '{"event": "rollback", "step": 9, "to": 5}',
             '{"event": "train", "step": 10}', '{"event": "validation", "step": 10}', '{"event": "train", "step": 15}',
             '{"event": "rollback", "step": 17, "to": 10}', '{"event": "train", "st']
    file.write_text("\n".join(lines))
    truncate_metrics(file, 10, 1)
    assert file.read_text().splitlines() == lines[:4]


@pytest.fixture
def begun(run, tmp_path):
    short = replace(run, train=replace(run.train, tokens=2 * 4 * 32, precision="float32"))
    train(short, tmp_path / "run", device="cpu", tensorboard=False)
    return short, tmp_path / "run"


def refused(begun, message):
    with pytest.raises(InputError, match=message) as caught:
        train(*begun, device="cpu", tensorboard=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [{"random": {}}, {"progress": {"speed": 3}}, {"cursor": {"drawn": 3}},
                                    {"break_evens": 3}])
def test_a_damaged_training_state_is_refused(begun, damage):
    file = begun[1] / "last" / STATE
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    refused(begun, "damaged|was made with")


def test_other_data_under_the_same_path_is_refused(begun):
    file = begun[1] / "last" / STATE
    state = json.loads(file.read_text())
    state["cursor"]["data_hash"] = "0" * 64
    file.write_text(json.dumps(state))
    refused(begun, "data_hash")


def test_a_checkpoint_of_another_model_is_refused(begun):
    file = begun[1] / "last" / MODEL
    tensors = safetensors.torch.load_file(file)
    tensors.pop("encoder.norm.weight")
    safetensors.torch.save_file(tensors, file)
    refused(begun, r"encoder\.norm\.weight is missing")


def test_a_damaged_run_file_is_refused(begun):
    (begun[1] / "run.json").write_text("{")
    refused(begun, r"run\.json is not valid JSON")


def test_a_run_killed_before_its_first_checkpoint_begins_again(begun, tmp_path):
    short, directory = begun
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "run.json").write_bytes((directory / "run.json").read_bytes())
    (tmp_path / "early" / ".step-00000000.partial").mkdir()
    train(short, tmp_path / "early", device="cpu", tensorboard=False)
    assert logged(tmp_path / "early") == logged(directory)
    assert sorted(p.name for p in (tmp_path / "early").iterdir()) == sorted(p.name for p in directory.iterdir())


def test_data_that_are_gone_are_asked_for_not_built_again(begun, tmp_path):
    short, directory = begun
    gone = replace(short, data=replace(short.data, directory=str(tmp_path / "gone")))
    refused((gone, directory), r"no token shards in .*gone, .* with --data NEW")
    with pytest.raises(InputError, match=r"gone/manifest\.json: .*; make the folder with"):
        train(gone, tmp_path / "new", device="cpu", tensorboard=False)
    assert not (tmp_path / "new").exists()


def test_a_second_process_is_refused_at_once_and_the_first_is_not_disturbed(run, tmp_path):
    longer, out = replace(run, train=replace(run.train, tokens=100 * run.train.tokens)), tmp_path / "run"
    first = start(longer, out)
    wait_for_step(first, out, 1)
    again = [sys.executable, "-m", "symboliclight", "train", "--out", str(out)]
    second = subprocess.run(again, capture_output=True, text=True, timeout=100)
    assert first.poll() is None, "the first run was over before the second began"
    assert (second.returncode, second.stdout, second.stderr.count("\n")) == (2, "", 1)
    assert f"{out} is in use by process {first.pid} since 20" in second.stderr
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=100)
    assert first.returncode == 0, errors
    steps = [line["step"] for line in logged(out) if line["event"] == "train"]
    assert steps == list(range(3, steps[-1] + 1, 3))
    assert not (out / ".lock").exists()


def test_a_run_that_was_taken_over_writes_no_more(run, tmp_path, monkeypatch):
    real = loop.step

    def step(*args):
        (tmp_path / "run" / ".lock").unlink(missing_ok=True)
        return real(*args)

    monkeypatch.setattr(loop, "step", step)
    with pytest.raises(InUse, match=r"run was taken over by another process"):
        train(run, tmp_path / "run", device="cpu", tensorboard=False)
    assert [p.name for p in (tmp_path / "run").glob("step-*")] == ["step-00000000"]


def test_the_data_may_move(begun, small_shards, tmp_path):
    short, directory = begun
    (tmp_path / "moved").symlink_to(small_shards.path)
    moved = replace(short, data=replace(short.data, directory=str(tmp_path / "moved")))
    assert train(moved, directory, device="cpu", tensorboard=False).steps == 2
    assert from_dict(RunConfig, to_dict(moved)) == moved


def test_a_resumed_run_goes_by_the_break_even_of_its_checkpoint(begun, monkeypatch):
    """Measured anew it might be another, and gathering sums in another order than the dense product."""
    monkeypatch.setattr(events, "_measured", {})
    file = begun[1] / "last" / STATE
    state, told = json.loads(file.read_text()), {"float32": 1 / 32, "bfloat16": 0.0}
    assert state["break_evens"].keys() == told.keys()
    file.write_text(json.dumps(state | {"break_evens": told}))
    train(*begun, device="cpu", tensorboard=False)
    assert events.break_evens() == told
