"""A run survives divergence, signals and a full disk."""

import errno
import os
import signal

import pytest
import torch
from training import go, lines, with_train

import symboliclight
from symboliclight.core import checkpoint
from symboliclight.core.errors import InputError
from symboliclight.train import loop

pytestmark = pytest.mark.usefixtures("one_thread")


def diverge_at(monkeypatch, *calls):
    """Make the given calls of step() (from 1) see a weight that became NaN."""
    count, real = iter(range(1, 1000)), loop.step

    def step(model, *args):
        if next(count) in calls:
            with torch.no_grad():
                model.head.out.weight[0, 0] = torch.nan
        return real(model, *args)

    monkeypatch.setattr(loop, "step", step)


def test_divergence_goes_back_to_the_last_checkpoint_with_half_the_rate(run, tmp_path, monkeypatch):
    diverge_at(monkeypatch, 7, 9)  # at step 7, and again at step 6 after the rollback to 4
    result = go(with_train(run, log_every=1), tmp_path / "run")
    assert (result.steps, result.rollbacks) == (20, 2)
    rollbacks = lines(tmp_path / "run", "rollback")
    keys = ("step", "to", "lr_scale", "loss")
    assert [tuple(line[key] for key in keys) for line in rollbacks] == [(7, 4, 0.5, None), (6, 4, 0.25, None)]
    steps = lines(tmp_path / "run", "train")
    assert [line["step"] for line in steps] == list(range(1, 21))
    plain = [loop.learning_rate(line["step"], 20, run.train) for line in steps]
    assert [line["lr"] for line in steps] == [lr * (1 if i < 4 else 0.25) for i, lr in enumerate(plain)]


def test_after_a_rollback_the_data_goes_on_past_the_bad_batches(run, tmp_path, monkeypatch):
    seen, real = [], loop.step

    def step(model, optimizer, batches, *args):
        seen.append(batches[0][0].tobytes())
        return real(model, optimizer, batches, *args)

    monkeypatch.setattr(loop, "step", step)
    diverge_at(monkeypatch, 7)
    go(run, tmp_path / "run")
    assert len(seen) == 23 and len(set(seen)) == 23


def test_a_loss_far_above_the_running_mean_is_a_divergence(run, tmp_path, monkeypatch):
    calls, real = iter(range(1, 1000)), loop.step

    def step(model, *args):
        if next(calls) == 7:
            with torch.no_grad():
                model.head.out.weight.mul_(1000)
        return real(model, *args)

    monkeypatch.setattr(loop, "step", step)
    assert go(run, tmp_path / "run").rollbacks == 1
    assert lines(tmp_path / "run", "rollback")[0]["loss"] > 10


def test_too_many_rollbacks_end_the_run_and_leave_the_last_good_checkpoint(run, tmp_path, monkeypatch):
    diverge_at(monkeypatch, *range(7, 50))
    with pytest.raises(InputError, match=r"diverged at step 5 after 3 rollbacks .*lower train\.lr.*step-00000004"):
        go(run, tmp_path / "run")
    symboliclight.load(tmp_path / "run")


@pytest.mark.parametrize(("number", "optimizer"), [(signal.SIGINT, "adamw"), (signal.SIGTERM, "muon")])
def test_a_signal_ends_the_step_saves_and_can_be_resumed(run, tmp_path, monkeypatch, number, optimizer):
    run = with_train(run, optimizer=optimizer)
    whole = go(run, tmp_path / "whole")
    real = loop.step

    def step(model, *args):
        if not (tmp_path / "sent").exists() and (tmp_path / "run" / "step-00000004").exists():
            (tmp_path / "sent").touch()
            os.kill(os.getpid(), number)
        return real(model, *args)

    monkeypatch.setattr(loop, "step", step)
    handler = signal.getsignal(number)
    stopped = go(run, tmp_path / "run")
    assert (stopped.steps, stopped.interrupted) == (5, True)
    assert os.readlink(tmp_path / "run" / "last") == "step-00000005"
    assert signal.getsignal(number) is handler
    done = go(run, tmp_path / "run")
    assert (done.steps, done.interrupted, done.loss) == (20, False, whole.loss)
    losses = [[line["loss"] for line in lines(tmp_path / name, "train")] for name in ("run", "whole")]
    assert losses[0] == losses[1]
    for file in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        ends = [checkpoint.read_tensors(tmp_path / name / "last" / file)[0] for name in ("run", "whole")]
        assert ends[0].keys() == ends[1].keys() and all(torch.equal(x, ends[1][key]) for key, x in ends[0].items())


@pytest.mark.parametrize(("number", "advice"), [
    (errno.ENOSPC, "free some space$"), (errno.EDQUOT, "free some space$"), (errno.EROFS, "make the .* writable"),
    (errno.EACCES, "get the permission to write there"), (errno.EIO, "check the disk")])
def test_a_disk_that_takes_no_more_is_one_line_and_the_last_checkpoint_survives(run, tmp_path, monkeypatch, number,
                                                                                advice):
    real = checkpoint._write_tensors

    def full(file, tensors, metadata):
        if "step-00000008" in str(file):
            raise OSError(number, os.strerror(number))
        real(file, tensors, metadata)

    monkeypatch.setattr(checkpoint, "_write_tensors", full)
    with pytest.raises(InputError, match=rf"step-00000008: {os.strerror(number)}; .*{advice}"):
        go(run, tmp_path / "run")
    monkeypatch.undo()
    assert os.readlink(tmp_path / "run" / "last") == "step-00000004"
    assert go(run, tmp_path / "run").steps == 20
