"""The study file: TOML -> the runs that it lists, in its order.

    [study]    name, description, vocab_size, reference: the label that a report compares others with (default: the
               first), split: test (the default), or validation for a search that is to leave the test split unseen
    [base]     fields common to all runs: preset, model, data, train and the shares below
    [[runs]]   label, group, seeds, tokens, lr, and changes to the base; generate = true: texts are written and measured
    [[claims]] better, worse: labels; published: the figures behind that ordering, as text

The groups sweep, warmup, main, ablation and sparsity have their places in a report.
seeds, tokens and lr may be lists: the entry stands for all combinations, tokens outermost, seeds innermost. Derived
from a run's budget unless `train` says otherwise: warmup_steps = warmup_share of the steps, min_lr = min_lr_share of
lr, `validations` measurements and at most `points` lines of the training log.
"""

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from symboliclight.core.config import DataConfig, ModelConfig, RunConfig, TrainConfig, from_dict, preset, to_dict
from symboliclight.core.errors import InputError
from symboliclight.train.optim import total_steps

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_STUDY = {"name", "description", "vocab_size", "reference", "split"}
_CLAIM = {"better", "worse", "published"}
_COMMON = {"preset", "model", "data", "train", "lr", "warmup_share", "min_lr_share", "validations", "points"}
_ENTRY = {"label", "group", "seeds", "tokens", "generate"} | _COMMON
_DEFAULTS = {"warmup_share": 0.05, "min_lr_share": 0.05, "validations": 5, "points": 100}
_SAVE_EVERY = 250  # steps
SWEEPS = ("sweep", "warmup")  # groups that choose a recipe: their runs are no evidence about models


@dataclass(frozen=True)
class Run:
    """One training run of a study; its configuration names no folder."""

    label: str
    group: str
    config: RunConfig
    generate: bool = False

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def tokens(self) -> int:
        """The budget; whole steps of it are trained."""
        return self.config.train.tokens

    @property
    def name(self) -> str:
        """For people: label, seed and budget."""
        return f"{self.label}-s{self.seed}-t{self.tokens}"

    def identity(self, data_hash: str) -> str:
        """Twelve hex digits of all that decides the result: the configuration and the data."""
        return identity(self.config, data_hash)


@dataclass(frozen=True)
class Claim:
    """A published ordering of two models, by their labels."""

    better: str
    worse: str
    published: str


@dataclass(frozen=True)
class Study:
    """A study file as read."""

    path: Path
    name: str
    description: str
    vocab_size: int
    runs: tuple[Run, ...]
    reference: str
    claims: tuple[Claim, ...] = ()
    split: str = "test"  # that finished runs are measured on


def identity(config: RunConfig, data_hash: str) -> str:
    """Of the fields that differ from their defaults, so that a field added later changes no old identity.

    bfloat16 was the default before "auto" was: a run is the same one wherever it may be chosen.
    """
    config = without_place(config)
    if config.train.precision == "bfloat16":
        config = replace(config, train=replace(config.train, precision="auto"))
    body = json.dumps([_changed(config), data_hash], sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()[:12]


def without_place(config: RunConfig) -> RunConfig:
    """The same run without the folder that the data happen to lie in."""
    return replace(config, data=replace(config.data, directory=""))


def _changed(config: Any) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    default = type(config)()
    return {name: _changed(value) if is_dataclass(value) else value for name, value in values.items()
            if is_dataclass(value) or value != getattr(default, name)}


def read_study(path: str | Path) -> Study:
    """Read a study file. Raises `InputError`, naming the file and the entry, for anything unknown, wrong or doubled."""
    path = Path(path)
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    _known(body, {"study", "base", "runs", "claims"}, str(path))
    about, base = _table(body, "study", str(path)), _table(body, "base", str(path))
    _known(about, _STUDY, f"{path} [study]")
    _known(base, _COMMON, f"{path} [base]")
    vocab_size = _typed(about, "vocab_size", int, f"{path} [study]")
    split = about.get("split", "test")
    if split not in ("test", "validation"):
        raise InputError(f"{path} [study]: split must be test or validation, got {split!r}")
    runs: list[Run] = []
    entries = body.get("runs", [])
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} lists no runs; add at least one [[runs]]")
    for number, entry in enumerate(entries, 1):
        where = f"{path} run {number}" + (f" ({entry['label']})" if "label" in entry else "")
        _known(entry, _ENTRY, where)
        runs += _expand(base, entry, vocab_size, where)
    _refuse_doubles(runs, path)
    if split != "test" and any(run.generate for run in runs):
        raise InputError(f"{path}: texts go on from prompts of the test split; with split = {split!r} leave out "
                         "generate")
    reference = about.get("reference", runs[0].label)
    claims = [_claim(claim, f"{path} claim {number}") for number, claim in enumerate(body.get("claims", []), 1)]
    labels = {run.label for run in runs}
    for label in (reference, *(x for claim in claims for x in (claim.better, claim.worse))):
        if label not in labels:
            raise InputError(f"{path} compares with {label!r}, but no run has that label")
    return Study(path, _typed(about, "name", str, f"{path} [study]"), str(about.get("description", "")), vocab_size,
                 tuple(runs), reference, tuple(claims), split)


def _claim(values: Any, where: str) -> Claim:
    _known(values, _CLAIM, where)
    return Claim(*(_typed(values, name, str, where) for name in ("better", "worse", "published")))


def choose(study: Study, only: Sequence[str] = (), tokens: int | None = None) -> list[Run]:
    """Runs whose group or label is in `only` (empty: all) and whose budget is `tokens`; unknown names are refused."""
    unknown = sorted(set(only) - {name for run in study.runs for name in (run.group, run.label)})
    if unknown:
        known = ", ".join(dict.fromkeys(run.group for run in study.runs))
        raise InputError(f"--only {' '.join(unknown)}: {study.path} has no such group or label; groups are: {known}")
    chosen = [run for run in study.runs if not only or {run.group, run.label} & set(only)]
    chosen = [run for run in chosen if tokens in (None, run.tokens)]
    if not chosen:
        budgets = ", ".join(f"{n}" for n in sorted({run.tokens for run in study.runs}))
        raise InputError(f"--tokens {tokens}: no run of {study.path} that --only leaves has it; budgets are: {budgets}")
    return chosen


def _expand(base: dict[str, Any], entry: dict[str, Any], vocab_size: int, where: str) -> list[Run]:
    label, group = _typed(entry, "label", str, where), _typed(entry, "group", str, where)
    if not label or set(label) - set("abcdefghijklmnopqrstuvwxyz0123456789-"):
        raise InputError(f"{where}: label must consist of a-z, 0-9 and -, it is part of file names")
    common = {**_DEFAULTS, **base, **entry}
    for section in ("model", "data", "train"):
        common[section] = {**_table(base, section, where), **_table(entry, section, where)}
    budgets, rates, seeds = (_list(common, name, where) for name in ("tokens", "lr", "seeds"))
    generate = entry.get("generate", False)
    if not isinstance(generate, bool):
        raise InputError(f"{where}: generate must be true or false, got {generate!r}")
    try:
        return [Run(label, group, _config(common, vocab_size, tokens, lr, seed, where), generate)
                for tokens, lr, seed in itertools.product(budgets, rates, seeds)]
    except InputError as error:
        raise error if where in str(error) else InputError(f"{where}: {error}") from error


def _config(common: dict[str, Any], vocab_size: int, tokens: int, lr: float, seed: int, where: str) -> RunConfig:
    if "directory" in common["data"]:
        raise InputError(f"{where}: data.directory has no place in a study; give the folder with --corpus or --data")
    for name in sorted({"tokens", "lr", "seed"} & set(common["train"])):
        raise InputError(f"{where}: write {'seeds' if name == 'seed' else name} in the entry itself, not in train")
    base_model = preset(_typed(common, "preset", str, where))
    shape = {**to_dict(base_model), "vocab_size": vocab_size, **common["model"]}
    model = from_dict(ModelConfig, shape, f"{where} model")
    data = from_dict(DataConfig, {"seq_len": model.max_seq_len, **common["data"]}, f"{where} data")
    given = {"tokens": tokens, "lr": lr, "seed": seed, "keep": 1, **common["train"]}
    train = from_dict(TrainConfig, {"min_lr": 0.0, **given}, f"{where} train")
    steps = total_steps(train, data.seq_len)
    every = math.ceil(steps / max(1, common["validations"])) if common["validations"] else 0
    derived = {"min_lr": lr * common["min_lr_share"], "warmup_steps": round(steps * common["warmup_share"]),
               "eval_every": every, "log_every": math.ceil(steps / common["points"]),
               "save_every": min(_SAVE_EVERY, every or steps)}
    return RunConfig(model, data, from_dict(TrainConfig, {**derived, **given}, f"{where} train"))


def _refuse_doubles(runs: list[Run], path: Path) -> None:
    """One run stands once; outside the sweeps, a label is one model at one rate."""
    seen: dict[Any, Run] = {}
    for run in runs:
        for key in (run.identity(""), *([(run.label, run.tokens, run.seed)] if run.group not in SWEEPS else [])):
            other = seen.setdefault(key, run)
            if other is not run:
                raise InputError(f"{path} lists one run twice, as {other.group}/{other.name} and "
                                 f"{run.group}/{run.name}; remove one of them, or give it a label of its own")


def _known(values: Any, names: set[str], where: str) -> None:
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a table")
    unknown = sorted(set(values) - names)
    if unknown:
        raise InputError(f"{where}: unknown field {', '.join(unknown)}; known are: {', '.join(sorted(names))}")


def _table(values: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    found = values.get(name, {})
    if not isinstance(found, dict):
        raise InputError(f"{where}: {name} must be a table, got {found!r}")
    return found


def _typed(values: dict[str, Any], name: str, kind: type, where: str) -> Any:
    if not isinstance(values.get(name), kind):
        raise InputError(f"{where}: {name} is missing or no {kind.__name__}, got {values.get(name)!r}")
    return values[name]


def _list(values: dict[str, Any], name: str, where: str) -> list[Any]:
    found = values.get(name)
    found = found if isinstance(found, list) else [found]
    if not found or any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in found):
        raise InputError(f"{where}: {name} must be a number or a list of numbers, got {values.get(name)!r}")
    return found


def describe(config: RunConfig) -> dict[str, Any]:
    """The configuration as it is written into a result."""
    return to_dict(without_place(config))


def changes(config: RunConfig, reference: RunConfig) -> dict[str, Any]:
    """Fields of the model, rate_weight and optimizer in which `config` differs from `reference`."""
    ours, theirs = ({**asdict(c.model), "rate_weight": c.train.rate_weight, "optimizer": c.train.optimizer}
                    for c in (config, reference))
    return {name: value for name, value in ours.items() if value != theirs[name]}
