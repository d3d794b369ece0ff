"""The training loop.

A run is a function of its `RunConfig` and the data: killed at any moment, it goes on from its last checkpoint and
reaches bitwise the same losses and weights as if it had never stopped (same machine, same numbers of threads and of
processes). Several processes (distributed.py) come to the same weights, and the first writes what there is to write.

When the loss is not finite, or more than `train.divergence` above its running mean, the run goes back to its last
checkpoint with half the learning rate. The data does not go back: the batches that did the harm are not met again.
"""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress as Bar

from symboliclight.core import checkpoint
from symboliclight.core.config import RunConfig, to_dict
from symboliclight.core.errors import Diverged, InputError
from symboliclight.core.lock import Lock
from symboliclight.core.processor import Precision
from symboliclight.data import Batches, Shards
from symboliclight.model import build
from symboliclight.model.sites import record_rates
from symboliclight.ops.events import DTYPES, break_evens, set_break_evens
from symboliclight.train import folder
from symboliclight.train.begin import begin_with
from symboliclight.train.distributed import Group, joined
from symboliclight.train.folder import Progress
from symboliclight.train.graph import GraphedStep, graphs
from symboliclight.train.log import Log, progress_bar
from symboliclight.train.optim import learning_rate, load_state_tensors, optimizer, state_tensors, total_steps
from symboliclight.train.precision import agreed_precision
from symboliclight.train.runtime import (
    choose_device,
    deterministic,
    keep_freed_memory,
    random_state,
    set_random_state,
    stop_on_signal,
)
from symboliclight.train.step import StepResult, ramped, step
from symboliclight.train.validate import SPLIT, validate, validation_domains

MEMORY = 0.98  # of the running mean loss, a step


@dataclass(frozen=True)
class Result:
    """What became of a run."""

    directory: str
    steps: int  # done
    total_steps: int  # of the whole budget
    tokens: int  # trained on
    loss: float | None  # running mean of the training loss, nats a token
    validation: dict[str, Any]  # the newest: see `validate`
    best: float | None  # lowest validation loss, nats a token
    rollbacks: int
    seconds: float  # spent in optimiser steps
    tokens_per_second: float
    interrupted: bool  # a signal stopped it; it is saved and can be resumed


def train(run: RunConfig, directory: str | Path, *, resume: bool = True, device: str = "auto", progress: bool = False,
          tensorboard: bool = True) -> Result:
    """Train `run` in folder `directory`, from its last checkpoint if it has one.

    SIGINT and SIGTERM end the current step, save and return. `device` is auto, cpu, cuda or cuda:N; `progress` shows
    a bar on stderr. Raises `InputError` if the folder holds another run (or any, with `resume` false), another process
    works on it (`InUse`), the data does not fit the configuration, the disk is full, the loss diverges more than
    `train.max_rollbacks` times, or the run was begun in bfloat16, this device emulates that and `train.precision` is
    "auto".
    """
    directory = Path(directory)
    keep_freed_memory()
    with (deterministic(), stop_on_signal() as stop, joined(choose_device(device)) as (group, own),
          folder.alone_in(directory, group) as mine, progress_bar(progress and group.leads) as bar):
        trainer = _Trainer(run, directory, own, tensorboard, group, agreed_precision(run, directory, own, group), mine)
        trainer.open(resume)
        task = bar.add_task("", total=trainer.total, completed=trainer.progress.step, figures="")
        try:
            while trainer.progress.step < trainer.total and not group.any(stop.is_set()):
                trainer.advance()
                trainer.show(bar, task)
            trainer.finish()
        finally:
            trainer.log.close()
        return trainer.result()


class _Trainer:
    """Everything that lives during a run."""

    def __init__(self, run: RunConfig, directory: Path, device: torch.device, tensorboard: bool, group: Group,
                 precision: Precision, mine: Lock | None = None) -> None:
        self.wanted, self.precision, self.mine = run, precision, mine
        self.run = replace(run, train=replace(run.train, precision=precision))
        self.directory, self.device, self.group = directory, device, group
        self.shards = Shards.of_run(run.data.directory, directory / folder.RUN)
        self.batches = self._batches(None)
        _check(run, self.shards, group)
        self.tokenizer = self.shards.tokenizer()
        self.total = total_steps(run.train, run.data.seq_len)
        torch.manual_seed(run.train.seed)
        self.model = build(run.model).to(device).train()
        self.optimizer = optimizer(self.model, run.train)
        self.graphed: GraphedStep | None = None  # made with the first step
        self.progress = Progress()
        self.log = Log(directory, tensorboard, group.leads)
        self.saved = -1  # step of the newest checkpoint
        self.recent = [0, 0.0]  # steps and seconds since the last line of the log, this session

    @property
    def step_tokens(self) -> int:
        c = self.run.train
        return c.batch_size * c.accumulate * self.run.data.seq_len

    def open(self, resume: bool) -> None:
        """Begin a new folder, or go on in an old one."""
        if self.group.leads and (not folder.known(self.directory, self.wanted, resume)
                                 or folder.stored_precision(self.directory) != self.precision):
            folder.write_run(self.directory, self.wanted, self.facts())
        if self.group.any(self.group.leads and (self.directory / checkpoint.LAST).exists()):
            self._restore(self.directory / checkpoint.LAST)
            self.log.rewind(self.progress.step, self.progress.rollbacks)
        else:
            self.log.rewind(0, 0)
            if self.run.train.init:
                begin_with(self.model, self.run.train.init, self.shards)
            given = self.run.train.break_even
            set_break_evens(self.group.mean(break_evens()) if given is None else dict.fromkeys(DTYPES, given))
            self._save()  # a rollback always finds a checkpoint, and a disk that is too small is found out now

    def advance(self) -> None:
        """One optimiser step with all that is due after it; or a rollback."""
        p, c = self.progress, self.run.train
        at, start = p.step + 1, time.perf_counter()
        logged = at % c.log_every == 0 or at == self.total
        limit = math.inf if p.mean_loss is None else p.mean_loss + c.divergence
        lr = p.lr_scale * learning_rate(at, self.total, c)
        done, rates = self._step(lr, limit, logged)
        if not done.applied:
            self._roll_back(at, done)
            return
        seconds = time.perf_counter() - start
        self.recent = [self.recent[0] + 1, self.recent[1] + seconds]
        p.step, p.seconds = at, p.seconds + seconds
        p.mean_loss = done.loss if p.mean_loss is None else MEMORY * p.mean_loss + (1 - MEMORY) * done.loss
        p.loss_sum, p.loss_count = p.loss_sum + done.loss, p.loss_count + 1
        if logged:
            self._log_step(done, rates)
        due = bool(c.eval_every) and (at % c.eval_every == 0 or at == self.total)
        improved = due and self.group.any(self.group.leads and self._validate())
        if improved or at % c.save_every == 0:
            self._save(best=improved)

    def _step(self, lr: float, limit: float, logged: bool) -> tuple[StepResult, dict[str, float]]:
        """One optimiser step, with the rate of every spike site if it is logged."""
        c = ramped(self.model, self.run, self.progress.step + 1, self.total)
        batches = [self.batches.next() for _ in range(c.accumulate)]
        if graphs(self.device, c):
            if self.graphed is None:
                self.graphed = GraphedStep(self.model, self.optimizer, c, batches[0])
            done = self.graphed(batches[0], lr, limit)
            return done, self.graphed.rates() if logged else {}
        recorder: AbstractContextManager[dict[str, float]] = record_rates(self.model) if logged else nullcontext({})
        with recorder as rates:
            done = step(self.model, self.optimizer, batches, c, lr, limit, self.group, self._seed())
        return done, self.group.mean(rates)

    def _seed(self) -> int:
        """Of the next step: another for each step, and for each time that a rollback repeats it."""
        words = np.random.SeedSequence([self.run.train.seed, self.progress.step, self.progress.rollbacks])
        return int(words.generate_state(1)[0])

    def finish(self) -> None:
        """Save what is not saved yet; the result of a complete run goes into run.json."""
        if self.saved != self.progress.step:
            self._save()
        if self.progress.step == self.total and self.group.leads:
            folder.write_run(self.directory, self.wanted, {**self.facts(), "result": asdict(self.result())})

    def facts(self) -> dict[str, Any]:
        """What the run was made with, beside its configuration."""
        return {"data_hash": self.shards.data_hash, "tokenizer_hash": self.shards.tokenizer_hash,
                "parameters": sum(p.numel() for p in self.model.parameters()), "total_steps": self.total,
                "precision": self.precision, "device": str(self.device), "threads": torch.get_num_threads(),
                "processes": self.group.size}

    def result(self) -> Result:
        p = self.progress
        tokens = p.step * self.step_tokens
        return Result(str(self.directory), p.step, self.total, tokens, p.mean_loss, p.validation, p.best, p.rollbacks,
                      p.seconds, tokens / p.seconds if p.seconds else 0.0, p.step < self.total)

    def show(self, bar: Bar, task: Any) -> None:
        p = self.progress
        loss = "" if p.mean_loss is None else f"loss {p.mean_loss:.3f}"
        rate = p.step * self.step_tokens / max(p.seconds, 1e-9)
        bar.update(task, completed=p.step, figures=f"{loss}  {rate:,.0f} tokens/s")

    def _log_step(self, done: StepResult, rates: dict[str, float]) -> None:
        p, (steps, seconds) = self.progress, self.recent
        lr = self.optimizer.param_groups[0]["lr"]
        self.log.write("train", p.step, trained_tokens=p.step * self.step_tokens, loss=p.loss_sum / p.loss_count,
                       lr=lr, grad_norm=done.grad_norm, tokens_per_second=steps * self.step_tokens / seconds,
                       seconds=p.seconds, epochs=self.batches.epochs, spikes=rates)
        p.loss_sum, p.loss_count, self.recent = 0.0, 0, [0, 0.0]

    def _validate(self) -> bool:
        """Measure, log, and say whether this is the best so far."""
        p = self.progress
        figures = validate(self.model, self.shards, self.tokenizer, self.run)
        if not math.isfinite(figures["nats_per_token"]):
            return False  # the next step sees it as well and rolls back
        p.validation = figures
        self.log.write("validation", p.step, trained_tokens=p.step * self.step_tokens, **figures)
        if p.best is not None and p.validation["nats_per_token"] >= p.best:
            return False
        p.best = p.validation["nats_per_token"]
        return True

    def _roll_back(self, at: int, done: StepResult) -> None:
        before, last = self.progress, self.directory / checkpoint.LAST
        if before.rollbacks >= self.run.train.max_rollbacks:
            raise Diverged(f"training diverged at step {at} after {before.rollbacks} rollbacks (loss "
                           f"{done.loss:.3f}, gradient norm {done.grad_norm:.3g}); lower train.lr, "
                           f"or use {last.resolve()} as it is")
        self._restore(last, data=False)
        p = self.progress
        self.log.rewind(p.step, before.rollbacks)
        p.rollbacks, p.lr_scale, p.seconds = before.rollbacks + 1, before.lr_scale / 2, before.seconds
        self.log.write("rollback", at, to=p.step, lr_scale=p.lr_scale,
                       loss=done.loss if math.isfinite(done.loss) else None)

    def _save(self, best: bool = False) -> None:
        if not self.group.same(list(self.model.parameters())):
            raise InputError("the processes have come to different weights; check memory and network of the machines, "
                             "and go on from the last checkpoint")
        if self.group.leads:
            self._write(best)
        self.saved = self.progress.step

    def _write(self, best: bool) -> None:
        if self.mine:
            self.mine.check()
        path = folder.checkpoint_path(self.directory, self.progress.step)
        state = {"run": to_dict(self.wanted), "progress": asdict(self.progress), "cursor": self.batches.cursor,
                 "random": random_state(self.device), "break_evens": break_evens()}
        checkpoint.save(path, self.run.model, self.model.state_dict(), self.tokenizer,
                        checkpoint.Training(state, state_tensors(self.optimizer, self.model)),
                        turns=self.run.data.loss == "answers")
        if best:
            folder.link(self.directory, folder.BEST, path)
        folder.link(self.directory, checkpoint.LAST, path)  # last: a run killed before this line repeats the one above
        folder.prune(self.directory, self.run.train.keep)

    def _restore(self, path: Path, data: bool = True) -> None:
        """Weights, optimiser, random state and counters of a checkpoint, and with `data` its place in the data."""
        _, tensors = checkpoint.load(path)
        checkpoint.check_tensors(path / checkpoint.MODEL, tensors, self.model.state_dict())
        training = checkpoint.load_training(path)
        try:
            self.progress = Progress(**training.state["progress"])
            set_random_state(training.state["random"], self.device)
            cursor = training.state["cursor"]
            set_break_evens(training.state.get("break_evens", {}))  # measured anew it might be another
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path / checkpoint.STATE} is damaged ({error}); restore it from a good copy") from error
        self.graphed = None  # what it recorded is replaced
        self.model.load_state_dict(tensors)
        load_state_tensors(self.optimizer, self.model, training.tensors)
        if data:
            self.batches = self._batches(cursor)
        self.saved = self.progress.step

    def _batches(self, cursor: dict[str, Any] | None) -> Batches:
        data, c = self.run.data, self.run.train
        return Batches(self.shards, "train", data.weights, data.seq_len, c.batch_size, c.seed, cursor, data.packing,
                       data.loss)


def _check(run: RunConfig, shards: Shards, group: Group) -> None:
    """Raise `InputError` where the data, the configuration and the processes contradict each other."""
    if run.train.accumulate % group.size:
        raise InputError(f"{group.size} processes share out the micro-batches of a step: train.accumulate must be a "
                         f"multiple of {group.size}, not {run.train.accumulate}")
    if run.model.vocab_size != shards.vocab_size:
        raise InputError(f"model.vocab_size is {run.model.vocab_size}, but the data in {shards.path} has "
                         f"{shards.vocab_size} pieces; set model.vocab_size to that, or use other data")
    if run.data.seq_len > run.model.max_seq_len:
        raise InputError(f"data.seq_len is {run.data.seq_len}, more than model.max_seq_len {run.model.max_seq_len}; "
                         "lower the first or raise the second")
    if run.train.rate_weight and run.model.family != "symboliclight":
        raise InputError(f"train.rate_weight is {run.train.rate_weight}, but a model of family {run.model.family} "
                         "has no spikes; set it to 0")
    if run.train.eval_every and not validation_domains(shards, run):
        raise InputError(f"{shards.path} has no {SPLIT} tokens; build the corpus with a larger share of it, "
                         "or set train.eval_every to 0")
