"""Working on a study: what is missing is run, one run at a time; several processes may work on one folder.

    WORK/data/         corpus, tokenizer.model, shards; made once
    WORK/runs/ID/      run folders of `symboliclight.train`; of a finished run the final weights stay
    WORK/locks/ID      names the process that works on the run, until it ends in whatever way

A run that was interrupted goes on from its last checkpoint, in this process or another.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from symboliclight.core import lock
from symboliclight.core.checkpoint import LAST, OPTIMIZER, locate
from symboliclight.core.config import load_json
from symboliclight.core.errors import Diverged, InputError
from symboliclight.core.provenance import commit, machine
from symboliclight.core.tokenizer import Tokenizer
from symboliclight.core.tokenizer import train as train_tokenizer
from symboliclight.data.corpus import Corpus, build_corpus
from symboliclight.data.readers import find_files
from symboliclight.data.sample import balanced_sample
from symboliclight.data.shards import Shards, build_shards
from symboliclight.model import load
from symboliclight.study.measure import curves, measure
from symboliclight.study.plan import Run, Study, describe
from symboliclight.study.results import Results
from symboliclight.study.texts import write_texts
from symboliclight.train import train
from symboliclight.train.folder import RUN

TOKENIZER_BYTES = 50_000_000  # of the training split, as `symboliclight tokenizer train` takes

Wanted = Literal["auto", "bfloat16", "float32"]  # a precision
Stage = Callable[[str], AbstractContextManager[Any]]  # announces a stage and shows that it runs


@dataclass
class Outcome:
    """What one call of `work` did: names of runs."""

    done: list[str]
    present: list[str]  # finished before
    locked: list[str]  # another process is at work on them
    interrupted: str | None = None


def prepare(study: Study, folder: Path, corpus_folder: Path | None, stage: Stage) -> Shards:
    """The shards of WORK/data, made from `corpus_folder` if they are missing; processes wait for one another."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", wait=True):
        if (folder / "shards").exists():
            return Shards.open(folder / "shards")
        if corpus_folder is None:
            raise InputError(f"{folder} holds no shards yet; give --corpus FOLDER with a file or folder a domain")
        with stage("cleaning and splitting the texts"):
            corpus = (Corpus(folder / "corpus") if (folder / "corpus").exists()
                      else build_corpus(domains(corpus_folder), folder / "corpus"))
        model = folder / "tokenizer.model"
        with stage(f"training a tokenizer of {study.vocab_size} pieces"):
            tokenizer = Tokenizer.load(model) if model.exists() else train_tokenizer(
                balanced_sample(corpus, TOKENIZER_BYTES).texts(), study.vocab_size, model).tokenizer
        with stage("turning text into tokens"):
            return build_shards(corpus, tokenizer, folder / "shards")


def domains(folder: Path) -> dict[str, Sequence[str | Path]]:
    """Each file or subfolder is a domain, named by its name up to the first dot."""
    found: dict[str, list[str | Path]] = {}
    for path in find_files(folder):
        inside = path.relative_to(folder).parts if path != folder else (path.name,)
        found.setdefault(inside[0].split(".")[0], []).append(path)
    return dict(found)


def data_hash(shards: Shards) -> str:
    """Of the texts, their split, and the tokenizer."""
    return hashlib.sha256(f"{shards.data_hash} {shards.tokenizer_hash}".encode()).hexdigest()


def work(study: Study, chosen: Sequence[Run], shards: Shards, folder: Path, results: Results,
         on_run: Callable[[Run, dict[str, Any]], None] = lambda run, body: None,
         precision: Wanted | None = None) -> Outcome:
    """Run what is missing of `chosen`, in order; `on_run` is told each finished run and its result.

    `precision` is computed in instead of what a run says; it is the same run all the same.

    A result that lacks the texts it should have gets them, if its final weights are in this folder.

    Raises `InputError` if the data do not fit the study, or as `train` does; a run whose loss diverges is a result.
    """
    if shards.vocab_size != study.vocab_size:
        raise InputError(f"{shards.path} has {shards.vocab_size} pieces, {study.path} says vocab_size = "
                         f"{study.vocab_size}; make shards with a tokenizer of that size")
    where = {"commit": commit(), "machine": machine()}  # now: the code in memory is the one that runs
    outcome = Outcome([], [], [])
    (folder / "locks").mkdir(parents=True, exist_ok=True)
    for run in chosen:
        name = run.identity(data_hash(shards))
        results.refresh()
        directory = folder / "runs" / name
        if (old := results.get(run)) is not None and not _silent(run, old, directory):
            outcome.present.append(run.name)
            continue
        with locked(folder / "locks" / name) as mine:
            results.refresh()  # another process may have finished it between the look and the lock
            old = results.get(run)
            if not mine or (old is not None and not _silent(run, old, directory)):
                (outcome.present if mine else outcome.locked).append(run.name)
                continue
            try:
                body = old or _perform(run, shards, directory, where, study.split, precision)
            except lock.InUse:  # somebody trains in its folder without the study
                outcome.locked.append(run.name)
                continue
            if body is None:
                outcome.interrupted = run.name
                return outcome
            if _silent(run, body, directory):
                model, _ = load(directory)
                body = {**body, "generation": {"commit": where["commit"], **write_texts(model, shards, run.seed)}}
            results.put(run, body)
            slim(directory)
        outcome.done.append(run.name)
        on_run(run, body)
    return outcome


def _silent(run: Run, body: dict[str, Any], directory: Path) -> bool:
    """Whether the run should have written texts, has not, and its final weights are here to do it with."""
    return run.generate and "generation" not in body and "diverged" not in body and finished(directory)


def _perform(run: Run, shards: Shards, directory: Path, where: dict[str, Any], split: str,
             precision: Wanted | None = None) -> dict[str, Any] | None:
    """Train and measure one run; None if a signal stopped it."""
    recipe = run.config.train
    config = replace(run.config, data=replace(run.config.data, directory=str(shards.path)),
                     train=replace(recipe, precision=precision or recipe.precision))
    body = {"label": run.label, "group": run.group, "seed": run.seed, "tokens": run.tokens, **where,
            "data_hash": data_hash(shards), "corpus_hash": shards.data_hash, "tokenizer_hash": shards.tokenizer_hash,
            "config": describe(run.config), "threads": torch.get_num_threads()}
    try:
        if not finished(directory) and train(config, directory, progress=True, tensorboard=False).interrupted:
            return None
    except Diverged as error:
        facts = load_json(directory / RUN)
        return {**body, "parameters": facts["parameters"], "diverged": str(error).split(";")[0],
                "curve": curves(directory)}
    facts = load_json(directory / RUN)
    start = time.perf_counter()
    measured = measure(run, shards, directory, split, facts["precision"])
    result = facts["result"]
    training = {"steps": result["steps"], "tokens": result["tokens"], "rollbacks": result["rollbacks"],
                "seconds": round(result["seconds"], 1), "tokens_per_second": round(result["tokens_per_second"], 1),
                "precision": facts["precision"], "threads": facts["threads"], "device": facts["device"],
                "measuring_seconds": round(time.perf_counter() - start, 1)}
    return {**body, "parameters": facts["parameters"], "training": training, "curve": curves(directory), **measured}


def finished(directory: Path) -> bool:
    """Whether a run folder holds a run that reached its last step."""
    return (directory / RUN).exists() and "result" in load_json(directory / RUN)


def slim(directory: Path) -> None:
    """Of a run whose result is written: keep the last weights only."""
    if not finished(directory):
        return
    last = locate(directory / LAST).resolve()
    for path in directory.glob("step-*"):
        if path.resolve() != last:
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree((last / OPTIMIZER).parent, ignore_errors=True)


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock file `path` for the block; yields whether it was free."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.held(path, path, wait))
        except lock.InUse:
            yield False
            return
        yield True


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock now."""
    return lock.living(path) is not None


def seconds_left(chosen: Sequence[Run], results: Results) -> float | None:
    """Time that one process needs for what is missing, at the cost measured for the label, else for all."""
    costs: dict[str, list[float]] = {}  # seconds a token: never divided by, a tiny run takes none
    missing = []
    for run in chosen:
        body = results.get(run)
        if body is None:
            missing.append(run)
        elif "training" in body:
            taken = body["training"]["seconds"] + body["training"]["measuring_seconds"]
            costs.setdefault(run.label, []).append(taken / body["training"]["tokens"])
    every = [x for values in costs.values() for x in values]
    if missing and not every:
        return None
    return sum(run.tokens * _mean(costs.get(run.label) or every) for run in missing)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

